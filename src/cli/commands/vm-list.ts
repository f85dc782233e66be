import { OwnerRegister } from '../../capabilities/owners.js'
import type { Command } from '../command.js'
import { registerOf, registerOption } from '../register.js'

export const command: Command = {
  summary: "List the VMs of the host's register, with owners and sources",
  options: registerOption,
  json: true,
  async run({ args, out }) {
    const register = registerOf(args)
    const vms = (await OwnerRegister.open(register)).list()
    if (out.isJson) out.json({ register, vms })
    else {
      out.table(
        [{ title: 'NAME' }, { title: 'UUID' }, { title: 'OWNER' }, { title: 'SOURCE' }],
        vms.map(({ name, uuid, owner, source }) => [name, uuid, owner, source]),
      )
    }
    return 0
  },
}
