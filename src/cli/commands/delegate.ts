import { writeFile } from 'node:fs/promises'
import { inspectToken } from '../../capabilities/inspect.js'
import { loadPublicKey } from '../../capabilities/key-files.js'
import { ALL_RIGHTS, parseRights } from '../../capabilities/rights.js'
import { tokenFromText } from '../../capabilities/token.js'
import { CloudAppError } from '../../errors.js'
import { integerOf } from '../arguments.js'
import type { Arguments, Command } from '../command.js'
import { ownerOptions, withOwner } from '../owner.js'

/** Limits of a token that are one number each. */
const LIMITS = {
  uses: 'operations in all',
  'output-bytes': 'bytes of guest data in all',
  'bytes-per-second': 'bytes of guest data a second',
  'operations-per-second': 'operations a second',
  'pause-ms-per-minute': 'milliseconds in each minute the VM may be held paused',
} as const

export const command: Command = {
  summary: 'Give a service domain rights over a VM of yours',
  help: [
    `Rights: ${ALL_RIGHTS.join(', ')}.`,
    '',
    'Prints the token to hand over, and what it allows in plain words. The token is of no use without the private key',
    'of the party it is made out to. Keep the block id: `cloudapp revoke` takes it.',
  ].join('\n'),
  options: {
    ...ownerOptions,
    vm: { type: 'string', value: 'NAME', required: true, help: 'name or uuid of the VM' },
    to: {
      type: 'string',
      value: 'KEY',
      required: true,
      help: 'public key of who gets the rights: a file or ed25519:…',
    },
    rights: { type: 'string', value: 'LIST', required: true, help: 'rights with commas between them' },
    expires: { type: 'string', value: 'TIME', required: true, help: 'for how long: 30s, 10m, 8h, 7d' },
    out: { type: 'string', value: 'FILE', help: 'write the token to a new file instead of printing it' },
    ...Object.fromEntries(
      Object.entries(LIMITS).map(([name, help]) => [name, { type: 'string', value: 'N', help: `at most N ${help}` }]),
    ),
  },
  json: true,
  run: (invocation) =>
    withOwner(invocation, async (owner) => {
      const { args, out } = invocation
      const granted = await owner.delegate({
        vm: args.need('vm'),
        to: await loadPublicKey(args.need('to')),
        rights: parseRights(args.need('rights')),
        expires: args.need('expires'),
        ...limits(args),
      })
      const { words } = inspectToken(tokenFromText(granted.token))
      const file = args.text('out')
      if (file !== undefined) await writeToken(file, granted.token)
      if (out.isJson) {
        const expires = new Date(granted.expires).toISOString()
        out.json({
          blockId: granted.blockId,
          expires,
          words,
          ...(file === undefined ? { token: granted.token } : { file }),
        })
      } else {
        for (const sentence of words) out.note(sentence)
        out.note(`block ${granted.blockId}`)
        out.line(file ?? granted.token)
      }
      return 0
    }),
}

function limits(args: Arguments): object {
  const given = Object.keys(LIMITS).flatMap((name) => {
    const text = args.text(name)
    const field = name.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase())
    return text === undefined ? [] : [[field, integerOf(name, text)] as const]
  })
  return Object.fromEntries(given)
}

async function writeToken(file: string, token: string): Promise<void> {
  try {
    await writeFile(file, `${token}\n`, { flag: 'wx', mode: 0o600 })
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    const why = code === 'EEXIST' ? 'exists already and is not overwritten' : `can not be written (${code})`
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${file} ${why}; the token was not handed out`, { cause })
  }
}
