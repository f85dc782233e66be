import { loadKey, loadPublicKey } from '../../capabilities/key-files.js'
import { mintToken } from '../../capabilities/mint.js'
import { OwnerRegister } from '../../capabilities/owners.js'
import { parseRights } from '../../capabilities/rights.js'
import { CloudAppError } from '../../errors.js'
import type { Command } from '../command.js'
import { registerOf, registerOption } from '../register.js'
import { caveatOptions, caveatsOf, handOut, outOption } from '../token-options.js'

export const command: Command = {
  summary: 'Sign a token without asking the broker, from the register of owners',
  help: '`cloudapp delegate` does the same where the broker can be reached, and learns from it which boot of the VM runs.',
  options: {
    key: { type: 'string', value: 'FILE', required: true, help: "the owner's private key" },
    ...registerOption,
    'broker-key': {
      type: 'string',
      value: 'KEY',
      required: true,
      help: "the broker's public key: a file or ed25519:…",
    },
    vm: { type: 'string', value: 'NAME', required: true, help: 'name or uuid of the VM' },
    to: { type: 'string', value: 'KEY', required: true, help: 'public key of who gets the rights' },
    rights: { type: 'string', value: 'LIST', required: true, help: 'rights with commas between them' },
    expires: { type: 'string', value: 'TIME', required: true, help: 'for how long: 30s, 10m, 8h, 7d' },
    out: outOption,
    ...caveatOptions,
  },
  json: true,
  async run(invocation) {
    const { args } = invocation
    const register = await OwnerRegister.open(registerOf(args))
    const name = args.need('vm')
    const vm = register.byName(name) ?? register.byUuid(name)
    if (vm === undefined)
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `the register has no VM '${name}'`, { vm: name })
    const owner = await loadKey(args.need('key'))
    if (vm.owner !== owner.publicKey) {
      throw new CloudAppError('ERR_CLOUDAPP_DENIED', `the owner of ${vm.name} is ${vm.owner}, not this key`, {
        vm: vm.name,
      })
    }
    const minted = mintToken({
      owner,
      vm: { uuid: vm.uuid, bootNonce: vm.bootNonce },
      holder: await loadPublicKey(args.need('to')),
      audience: await loadPublicKey(args.need('broker-key')),
      rights: parseRights(args.need('rights')),
      expires: args.need('expires'),
      ...caveatsOf(args),
    })
    await handOut(invocation, minted)
    return 0
  },
}
