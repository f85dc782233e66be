// A client VM's program: finds its service domain by its name, asks it for a scan, then watches, also while that is started anew; acknowledges the
// first finding it is told of. A line of JSON for each thing it learns.
import { discover, SdClient } from '@cloudapp/sdk/client'

const say = (what: object) => console.log(JSON.stringify(what))

const { endpoint } = await discover(process.argv[2] ?? '')
say({ discovered: endpoint })
await using ids = await SdClient.connect(endpoint, { reconnectMs: 600_000 })
await (await ids.run()).done()
say({ scanned: true })
let first: string | undefined
const watch = ids.findings.watch({ onGap: (gap) => say({ gap }), onLive: () => say({ live: true }) })
for await (const { cursor, change, finding } of watch) {
  const { uid, title } = finding.finding_info
  say({ change, uid, title, count: finding.count, cursor })
  if (first !== undefined) continue
  first = uid
  await ids.findings.acknowledge(uid)
  say({ acknowledged: uid })
}
