import { changeOwners } from '../../capabilities/owners.js'
import type { Command } from '../command.js'
import { noteReload, registered, registeredPositional, registerOf, registerOption } from '../register.js'

export const command: Command = {
  summary: "Take a VM out of the host's register: every delegation of it ends",
  help: 'A VM that is entered again later is another boot: tokens of before stay void.',
  options: registerOption,
  positionals: [registeredPositional],
  json: true,
  async run({ args, out }) {
    const register = registerOf(args)
    let removed = { name: '', uuid: '' }
    await changeOwners(register, (vms) => {
      const gone = registered(vms, args.positionals[0] ?? '')
      removed = { name: gone.name, uuid: gone.uuid }
      return vms.filter((vm) => vm !== gone)
    })
    if (out.isJson) out.json({ register, ...removed })
    else out.line(`${removed.name} (${removed.uuid}) is taken out`)
    noteReload(out)
    return 0
  },
}
