import { parseToken, tokenFromText } from '../../capabilities/token.js'
import { CloudAppError } from '../../errors.js'
import { type Command, UsageError } from '../command.js'
import { ownerOptions, withOwner } from '../owner.js'

export const command: Command = {
  summary: 'Take a delegation back, and all that was derived from it',
  help: [
    'Ends it at once, also where it is in use.',
    '',
    'A service domain that Xen itself lets map the VM (docs/flask.md) can map nothing new from then on; what it has mapped it can',
    'keep, if it does not play by the rules. --hard destroys it, which takes that too.',
  ].join('\n'),
  options: {
    ...ownerOptions,
    hard: { type: 'boolean', help: 'destroy the service domains that had direct access by it' },
  },
  positionals: [{ name: 'BLOCK', help: 'the block id that delegate printed, or the token itself', required: true }],
  json: true,
  run(invocation) {
    const { args, out } = invocation
    const block = blockOf(args.positionals[0] ?? '')
    return withOwner(invocation, async (owner) => {
      const { ended, destroyed } = await owner.revoke(block, { hard: args.flag('hard') })
      if (out.isJson) out.json({ blockId: block, ended, destroyed })
      else for (const name of destroyed) out.line(`destroyed ${name}`)
      if (!out.isJson) out.line(`revoked; ${ended} live ${ended === 1 ? 'capability' : 'capabilities'} ended`)
      return 0
    })
  },
}

/** Of a token, the block the owner signed: with it goes all of the chain. */
function blockOf(text: string): string {
  if (!text.startsWith('cloudapp1.')) {
    if (/^[0-9a-f]{16,64}$/.test(text)) return text
    throw new UsageError(`'${text}' is neither a block id nor a token`)
  }
  const root = parseToken(tokenFromText(text)).blocks[0]
  if (root === undefined) throw new CloudAppError('ERR_CLOUDAPP_TOKEN', 'the token has no block')
  return root.id
}
