import { attenuateToken } from '../../capabilities/attenuate.js'
import { inspectToken } from '../../capabilities/inspect.js'
import { loadKey, loadPublicKey } from '../../capabilities/key-files.js'
import { parseRights } from '../../capabilities/rights.js'
import { tokenToText } from '../../capabilities/token.js'
import type { Command } from '../command.js'
import { caveatOptions, caveatsOf, outOption, tokenArgument, tokenPositional, writeToken } from '../token-options.js'

export const command: Command = {
  summary: 'Append a block to a token that narrows it, for yourself or for another holder',
  help: [
    'What is left out stays as it is. What would widen is refused.',
    'The token itself stays as good as it was: only whoever gets the new one is limited by it.',
  ].join('\n'),
  options: {
    key: { type: 'string', value: 'FILE', required: true, help: "the present holder's private key" },
    to: { type: 'string', value: 'KEY', help: 'public key of the next holder; the present one if absent' },
    rights: { type: 'string', value: 'LIST', help: 'only these rights' },
    expires: { type: 'string', value: 'TIME', help: 'for how long from now: 30s, 10m, 8h, 7d' },
    out: outOption,
    ...caveatOptions,
  },
  positionals: [tokenPositional],
  json: true,
  async run({ args, out }) {
    const to = args.text('to')
    const rights = args.text('rights')
    const expires = args.text('expires')
    const narrower = attenuateToken(await tokenArgument(args), {
      holder: await loadKey(args.need('key')),
      ...(to === undefined ? {} : { to: await loadPublicKey(to) }),
      ...(rights === undefined ? {} : { rights: parseRights(rights) }),
      ...(expires === undefined ? {} : { expires }),
      ...caveatsOf(args),
    })
    const token = tokenToText(narrower)
    const { words, blocks } = inspectToken(narrower)
    const blockId = blocks[blocks.length - 1]?.id
    const file = args.text('out')
    if (file !== undefined) await writeToken(file, token)
    if (out.isJson) {
      out.json({ blockId, words, ...(file === undefined ? { token } : { file }) })
    } else {
      for (const sentence of words) out.note(sentence)
      out.note(`block ${blockId}`)
      out.line(file ?? token)
    }
    return 0
  },
}
