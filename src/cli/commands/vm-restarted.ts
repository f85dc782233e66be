import { changeOwners, newBootNonce } from '../../capabilities/owners.js'
import type { Command } from '../command.js'
import { noteReload, registered, registeredPositional, registerOf, registerOption } from '../register.js'

export const command: Command = {
  summary: 'Say that a VM was started anew: delegations of its earlier start end',
  help: [
    'Gives the VM a new boot nonce. The register is the only place where it stands, for every kind of source, and nothing else',
    'renews it: call this wherever the VM is created, started, restored or cloned (a hook of the toolstack), before the broker',
    'is told. Where it is forgotten, the broker refuses the VM it finds started anew.',
  ].join('\n'),
  options: registerOption,
  positionals: [registeredPositional],
  json: true,
  async run({ args, out }) {
    const register = registerOf(args)
    const bootNonce = newBootNonce()
    let which = { name: '', uuid: '' }
    await changeOwners(register, (vms) => {
      const started = registered(vms, args.positionals[0] ?? '')
      which = { name: started.name, uuid: started.uuid }
      return vms.map((vm) => (vm === started ? { ...vm, bootNonce } : vm))
    })
    if (out.isJson) out.json({ register, ...which, bootNonce })
    else out.line(`${which.name} has the boot nonce ${bootNonce}`)
    noteReload(out)
    return 0
  },
}
