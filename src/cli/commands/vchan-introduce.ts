import { introduce } from '../../transport/xen/introductions.js'
import type { Command } from '../command.js'
import { INTRODUCTION, withIntroduction } from '../introduction.js'

export const command: Command = {
  summary: 'Let one domain of this Xen host find a service of another, as vchan:SERVICE',
  help: [
    'Run in dom0. It tells each of the two, in keys of xenstore that no domain can write, who the other is: a domain that was',
    'not introduced is not served, and none can pose as another. Say it again when one of them was restarted, as it is a new',
    'domain then; so a service domain and its client, and a service domain and the broker (--server 0) are introduced.',
  ].join('\n'),
  ...INTRODUCTION,
  json: true,
  async run({ args, out }) {
    const { service, server, client } = await withIntroduction(args, introduce)
    if (out.isJson) out.json({ service, server, client })
    else out.line(`domain ${client} finds domain ${server} as vchan:${service}`)
    return 0
  },
}
