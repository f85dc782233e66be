import type { SdClient } from '../../service/client.js'
import type { ClientFinding, FindingGap } from '../../service/client-streams.js'
import { escapeText } from '../../service/table.js'
import type { Command, Output } from '../command.js'
import { LiveTable } from '../live-table.js'
import { connectSd, filterOf, filterOptions, sdOptions } from '../sd-options.js'

/** How long a service domain may be away before the watch is given up, in ms. */
const PATIENCE = 10 * 60_000

export const command: Command = {
  summary: "Watch a service domain's findings about your VMs as they come",
  help: [
    'First what there is (after --since), then each change as it is made, until you interrupt it. On a terminal the table is',
    'drawn anew; otherwise each change is a line. With --json each line is a document: {"type":"finding","cursor",…},',
    '{"type":"gap",…} where some were missed, {"type":"live"} once all that was stored has been given.',
    'When the service domain is started anew, the watch goes on where it was.',
  ].join('\n'),
  options: { ...sdOptions, ...filterOptions },
  json: true,
  async run({ args, out, signal }) {
    const filter = filterOf(args)
    await using client = await connectSd(args, { signal, reconnectMs: PATIENCE, name: 'cloudapp findings watch' })
    const watch = (on: Marks) => client.findings.watch({ ...filter, signal, ...on })
    if (out.isJson) await asJson(watch, out)
    else if (process.stdout.isTTY) await asTable(watch, client)
    else await asLines(watch, out)
    return 0
  },
}

interface Marks {
  onGap(gap: FindingGap): void
  onLive(): void
}

type Watch = (on: Marks) => AsyncIterable<ClientFinding>

async function asJson(watch: Watch, out: Output): Promise<void> {
  const marks = {
    onGap: (gap: FindingGap) => out.jsonLine({ type: 'gap', ...gap }),
    onLive: () => out.jsonLine({ type: 'live' }),
  }
  for await (const found of watch(marks)) out.jsonLine({ type: 'finding', ...found })
}

async function asLines(watch: Watch, out: Output): Promise<void> {
  const marks = { onGap: (gap: FindingGap) => out.line(missed(gap)), onLive: () => out.note('live') }
  for await (const { change, finding } of watch(marks)) {
    const { severity, time, finding_info, resources, count } = finding
    const vm = resources[0]?.name ?? resources[0]?.uid ?? '?'
    const words = [severity, vm, finding_info.title, `x${count}`, finding_info.uid].map(escapeText)
    out.line(`${new Date(time).toISOString()}  ${change.padEnd(11)}  ${words.join('  ')}`)
  }
}

async function asTable(watch: Watch, client: SdClient): Promise<void> {
  const { service } = await client.describe()
  using table = new LiveTable(process.stdout)
  let [live, gaps] = [false, '']
  const tell = () => {
    table.status(`${escapeText(service.title)}: ${live ? 'live' : 'listing'}${gaps}; Ctrl-C ends`)
  }
  tell()
  const marks = {
    onGap: (gap: FindingGap) => {
      gaps = `; ${missed(gap)}`
      tell()
    },
    onLive: () => {
      live = true
      tell()
    },
  }
  for await (const { finding } of watch(marks)) table.set(finding)
}

function missed({ count, exact, reason }: FindingGap): string {
  const why = reason === 'slow' ? 'this client fell behind' : 'they were removed for their age or number'
  return `${exact ? '' : 'at least '}${count} missed: ${why}`
}
