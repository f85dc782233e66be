import { loadPublicKey } from '../../capabilities/key-files.js'
import { ALL_RIGHTS, parseRights } from '../../capabilities/rights.js'
import { tokenFromText } from '../../capabilities/token.js'
import type { Command } from '../command.js'
import { ownerOptions, withOwner } from '../owner.js'
import { caveatOptions, caveatsOf, handOut, outOption } from '../token-options.js'

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
    out: outOption,
    ...caveatOptions,
  },
  json: true,
  run: (invocation) =>
    withOwner(invocation, async (owner) => {
      const { args } = invocation
      const granted = await owner.delegate({
        vm: args.need('vm'),
        to: await loadPublicKey(args.need('to')),
        rights: parseRights(args.need('rights')),
        expires: args.need('expires'),
        ...caveatsOf(args),
      })
      await handOut(invocation, tokenFromText(granted.token))
      return 0
    }),
}
