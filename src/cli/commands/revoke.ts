import type { Revoked } from '../../broker/owner-target.js'
import { parseToken } from '../../capabilities/token.js'
import { CloudAppError } from '../../errors.js'
import { type Arguments, type Command, UsageError } from '../command.js'
import { ownerOptions, withOwner } from '../owner.js'
import { tokenArgument } from '../token-options.js'

export const command: Command = {
  summary: 'Take a delegation back, and all that was derived from it',
  help: [
    'Ends it at once, also where it is in use. Of a token its last block is revoked: that token and all that was derived from it,',
    'and not what it was derived from itself. `cloudapp token inspect` lists the blocks before it, the first of which takes all.',
    '',
    'A service domain that Xen itself lets map the VM (docs/flask.md) can map nothing new from then on; what it has mapped it can',
    'keep, if it does not play by the rules. --hard destroys it, which takes that too.',
  ].join('\n'),
  options: {
    ...ownerOptions,
    hard: { type: 'boolean', help: 'destroy the service domains that had direct access by it' },
  },
  positionals: [
    { name: 'BLOCK', help: 'the block id that delegate printed, the token, or a file that holds it', required: true },
  ],
  json: true,
  async run(invocation) {
    const { args, out } = invocation
    const blockId = await blockOf(args)
    return withOwner(invocation, async (owner) => {
      const revoked = await owner.revoke(blockId, { hard: args.flag('hard') })
      if (out.isJson) {
        out.json({ blockId, ...revoked })
        return 0
      }
      for (const name of revoked.destroyed) out.line(`destroyed ${name}`)
      out.line(`revoked ${blockId}; ${endedWords(revoked)}`)
      // A revocation of what is still to come must work, so a mistyped one does as well.
      if (!revoked.seen)
        out.note('since it started, this broker has seen no such block: if it should have, compare the id')
      return 0
    })
  },
}

function endedWords({ ended, direct }: Revoked): string {
  const live = `${ended} live ${ended === 1 ? 'capability' : 'capabilities'} ended`
  return direct === 0 ? live : `${live}, and ${direct} ${direct === 1 ? 'lease' : 'leases'} of direct access`
}

/** The id that is given, or that of the last block of the token that is. */
async function blockOf(args: Arguments): Promise<string> {
  const [text = ''] = args.positionals
  if (/^[0-9a-f]{32}$/.test(text)) return text
  let token: Uint8Array
  try {
    token = await tokenArgument(args)
  } catch (error) {
    if (!CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) throw error
    throw new UsageError(`cloudapp revoke: '${text}' is no block id (32 hexadecimal digits), no token and no file`)
  }
  const last = parseToken(token).blocks.at(-1)
  if (last === undefined) throw new CloudAppError('ERR_CLOUDAPP_TOKEN', 'the token has no block')
  return last.id
}
