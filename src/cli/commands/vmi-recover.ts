import { recoverVms } from '../../vmi/sources/recover.js'
import { toldOf } from '../../vmi/sources/recovered.js'
import type { Command } from '../command.js'

export const command: Command = {
  summary: 'Undo in every VM of this host what killed processes left there: breakpoints, waiting vCPUs, pauses',
  help: [
    'Whoever watches or pauses a VM and is killed leaves somebody behind who puts it back as it was. Where all of them are killed',
    'at once (systemctl kill, the memory limit of a control group) this does it; a broker does it when it starts, and whoever',
    'opens or watches the VM next. What living processes do is left alone.',
  ].join('\n'),
  options: {},
  json: true,
  async run({ out }) {
    const vms = await recoverVms()
    if (out.isJson) out.json(vms)
    else if (vms.length === 0) out.line('nothing was left')
    else for (const vm of vms) out.line(toldOf(vm))
    return 0
  },
}
