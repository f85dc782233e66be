// Watches what a program of a domain does once (test/rig/guest/traps.c), as one JSON document: traps.mjs DOMAIN.
// Says 'watching' when everything is on; ends when each trap has told of it.
import { type Captures, type EventBatch, type EventStream, openXen } from '@cloudapp/sdk/vmi'

const EFER = 0xc000_0080
const plain = (_: string, value: unknown) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value)

await using vm = await openXen(process.argv[2] ?? '')
const { events } = vm
if (events === undefined) throw new Error('xen: gives no events')

const written = { from: { field: 'oldValue' }, to: { field: 'newValue' } } as const
const cr4 = await events.subscribe({ trap: { kind: 'register', register: 'cr4', changed: true }, captures: written })
const efer = await events.subscribe({ trap: { kind: 'msr', msr: EFER }, captures: written })
const requests = await events.subscribe({ trap: { kind: 'guest-request' } })
console.log('watching')

/** The rows of a stream until there are enough. */
async function rows<C extends Captures>(
  stream: EventStream<C>,
  enough: number,
  row: (batch: EventBatch<C>, index: number) => unknown,
) {
  const all: unknown[] = []
  for await (const batch of stream) {
    for (let index = 0; index < batch.count; index++) all.push(row(batch, index))
    if (all.length >= enough) return all
  }
  return all
}

const said = {
  cr4: rows(cr4, 2, ({ columns: { from, to } }, i) => [from[i], to[i]]),
  efer: rows(efer, 1, ({ columns: { from, to } }, i) => [from[i], to[i]]),
  requests: rows(requests, 1, (batch, i) => batch.columns.vcpu[i]),
}
const entries = await Promise.all(Object.entries(said).map(async ([name, value]) => [name, await value] as const))

// The last subscription ends while this process holds the VM paused: the monitor stays until its vCPUs can run.
const last = await events.subscribe({ trap: { kind: 'register', register: 'cr3' } })
const held = await vm.pause?.()
const began = performance.now()
await last.close()
const closedMs = performance.now() - began
await held?.close()
console.log(JSON.stringify({ ...Object.fromEntries(entries), closedMs }, plain))
