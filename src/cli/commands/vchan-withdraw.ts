import { withdraw } from '../../transport/xen/introductions.js'
import type { Command } from '../command.js'
import { INTRODUCTION, withIntroduction } from '../introduction.js'

export const command: Command = {
  summary: 'Take an introduction back: the service is found no more',
  help: 'Run in dom0. Who is connected stays so until one of the two ends it.',
  ...INTRODUCTION,
  json: true,
  async run({ args, out }) {
    const { service, server, client } = await withIntroduction(args, withdraw)
    if (out.isJson) out.json({ service, server, client })
    else out.line(`domain ${client} no longer finds domain ${server} as vchan:${service}`)
    return 0
  },
}
