// The benchmark of events, in dom0: CR3 writes of a guest that does nothing else, counted through the TypeScript API and by
// bench-events.c, turn about. Prints one JSON document: events a second of each, the median of all rounds.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { openXen } from '@cloudapp/sdk/vmi'
import { median } from '../../../../bench/measure.js'

const [which = '', domid = ''] = process.argv.slice(2)
const ROUNDS = 9
const MS = 3000

function plain(): number {
  const { stdout, stderr, status } = spawnSync(path.join(import.meta.dirname, 'bench-events'), [domid, String(MS)], {
    encoding: 'utf8',
  })
  if (status !== 0) throw new Error(`the C program ended with ${status}: ${stderr}`)
  const [events, ns] = stdout.split(' ').map(Number)
  return ((events ?? 0) * 1e9) / (ns ?? 1)
}

async function ours(): Promise<number> {
  await using vm = await openXen(which)
  if (vm.events === undefined) throw new Error('xen: gives no events')
  const stream = await vm.events.subscribe({
    trap: { kind: 'register', register: 'cr3' },
    captures: { from: { field: 'oldValue' }, to: { field: 'newValue' } },
  })
  let events = 0
  let sum = 0n
  const began = performance.now()
  // Closing gives the traps back, which takes a while and is no event.
  let seconds = 0
  const timer = setTimeout(() => {
    seconds = (performance.now() - began) / 1000
    void stream.close()
  }, MS)
  for await (const { count, columns } of stream) {
    if (seconds === 0) events += count
    sum ^= columns.to[count - 1] ?? 0n
  }
  clearTimeout(timer)
  const { matched, dropped } = await stream.counts()
  if (dropped > 0 || sum < 0n) throw new Error(`${dropped} of ${matched} events were lost`)
  return events / seconds
}

const rates: { readonly ours: number[]; readonly c: number[] } = { ours: [], c: [] }
for (let round = 0; round < ROUNDS; round++) {
  rates.c.push(plain())
  rates.ours.push(await ours())
}
console.log(JSON.stringify({ ours: median(rates.ours), c: median(rates.c) }))
