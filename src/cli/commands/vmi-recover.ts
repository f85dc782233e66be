import { recoverXen, toldOf } from '../../vmi/sources/xen-recover.js'
import type { Command } from '../command.js'

export const command: Command = {
  summary: 'Undo in every Xen domain of this host what killed processes left there: breakpoints, waiting vCPUs, pauses',
  help: [
    'Whoever watches a domain and is killed leaves somebody behind who puts it back as it was. Where all of them are killed at',
    'once (systemctl kill, the memory limit of a control group) this does it; a broker does it when it starts, and whoever',
    'watches the domain next. What living processes do is left alone.',
  ].join('\n'),
  options: {},
  json: true,
  async run({ out }) {
    const domains = await recoverXen()
    if (out.isJson) out.json(domains)
    else if (domains.length === 0) out.line('nothing was left')
    else for (const domain of domains) out.line(toldOf(domain))
    return 0
  },
}
