import { attenuateToken } from '../../capabilities/attenuate.js'
import { loadKey, loadPublicKey } from '../../capabilities/key-files.js'
import { parseRights } from '../../capabilities/rights.js'
import type { Command } from '../command.js'
import { caveatOptions, caveatsOf, handOut, outOption, tokenArgument, tokenPositional } from '../token-options.js'

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
  async run(invocation) {
    const { args } = invocation
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
    await handOut(invocation, narrower)
    return 0
  },
}
