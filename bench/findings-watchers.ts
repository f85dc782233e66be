// Clients of one service domain, in a process of their own: SOCKET COUNT. The last of them is stalled until it is told to
// resume. Says when all watch, and then how long each finding took and what the stalled one was told.
import { once } from 'node:events'
import { type ClientFinding, SdClient } from '@cloudapp/sdk/client'

const [socket = '', count = ''] = process.argv.slice(2)
const total = Number(count)
const took: number[] = []
let live = 0
const say = (document: unknown) => process.stdout.write(`${JSON.stringify(document)}\n`)
const arrived = ({ finding }: ClientFinding) => {
  const data = finding.evidences?.[0]?.data as { sent?: number } | undefined
  if (data?.sent !== undefined) took.push(performance.timeOrigin + performance.now() - data.sent)
}

for (let i = 0; i < total - 1; i++) {
  const client = await SdClient.connect(socket)
  const watching = async () => {
    // Only the bench's own: what was stored before is of no interest here.
    for await (const found of client.findings.watch({ minSeverity: 'fatal', vm: 'vm-0', onLive: () => live++ })) {
      arrived(found)
    }
  }
  watching().catch((error) => {
    throw error
  })
}

// The stalled one stops asking after the first record.
let gap = 0
let seen = 0
const resumed = once(process.stdin, 'data')
const stalled = await SdClient.connect(socket)
const done = (async () => {
  for await (const { finding } of stalled.findings.watch({
    vm: 'stalled',
    onGap: (g) => (gap += g.count),
    onLive: () => live++,
  })) {
    seen++
    if (seen === 1) await resumed
    if (finding.message === 'last') break
  }
})()
while (live < total) await new Promise((resolve) => setTimeout(resolve, 20))
say({ watching: total })
await done
say({ took, gap, seen })
process.exit(0)
