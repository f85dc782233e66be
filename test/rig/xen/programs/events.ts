// Watches a domain through the library, as one JSON document: events.mjs DOMAIN SYMBOL.
// Says 'watching' when everything is on; ends when each stream has had what it waits for.
import { createHash } from 'node:crypto'
import { CloudAppError, Linux } from '@cloudapp/sdk'
import { type Captures, type EventBatch, type EventStream, openXen } from '@cloudapp/sdk/vmi'

const [which = '', symbol = ''] = process.argv.slice(2)
const plain = (_: string, value: unknown) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value)

await using vm = await openXen(which)
const linux = await Linux.attach(vm)
const { events } = vm
if (events === undefined) throw new Error('xen: gives no events')
const trap = await linux.breakpoint(symbol)

/** The function's page as readers of this process and of another handle get it. */
async function text(of: typeof vm): Promise<string> {
  const start = trap.at & ~0xfffn
  const [read] = await of.memory.read([{ space: trap.space, at: start, length: 4096 }])
  const { digests } = await of.memory.digest({ space: trap.space, start, end: start + 4096n })
  const hash = createHash('sha256')
    .update(read?.bytes ?? '')
    .digest('hex')
  return `${hash} ${Buffer.from(digests).toString('hex')}`
}

const before = await text(vm)
const switches = await events.subscribe({
  trap: { kind: 'register', register: 'cr3', changed: true },
  captures: { from: { field: 'oldValue' }, to: { field: 'newValue' } },
})
const leaves = await events.subscribe({
  trap: { kind: 'cpuid' },
  predicate: ['==', { field: 'leaf' }, 0n],
  captures: { leaf: { field: 'leaf' } },
})
const opens = await events.subscribe({
  trap,
  captures: { dfd: { register: 'rdi' }, path: { string: { register: 'rsi' }, bytes: 64 } },
})
// Never asked for its events: what it can not keep is lost to it alone.
const stalled = await events.subscribe(
  { trap: { kind: 'register', register: 'cr3' }, captures: { stack: { memory: { register: 'rsp' }, bytes: 256 } } },
  { buffer: 65_536 },
)
await using other = await openXen(which)
const meanwhile = await text(other)
console.log('watching')

/** Events until there are enough: how many, and whether in order. */
async function take<C extends Captures>(
  stream: EventStream<C>,
  enough: (seen: number) => boolean,
  each: (batch: EventBatch<C>, row: number) => void,
) {
  let seen = 0
  let last = -1n
  let ordered = true
  for await (const batch of stream) {
    for (let row = 0; row < batch.count; row++) {
      const serial = batch.columns.serial[row] ?? 0n
      ordered &&= serial > last
      last = serial
      each(batch, row)
    }
    seen += batch.count
    if (enough(seen)) break
  }
  return { seen, ordered, ...(await stream.counts()) }
}

const roots = new Set<bigint>()
const paths = new Set<string>()
const dfds = new Set<bigint>()
// With one vCPU, each switch begins where the one before ended.
let chained = true
let root: bigint | undefined
const results = await Promise.all([
  take(
    switches,
    (seen) => seen >= 300,
    ({ columns: { from, to } }, row) => {
      chained &&= root === undefined || from[row] === root
      root = to[row]
      roots.add(to[row] ?? 0n)
    },
  ),
  take(
    leaves,
    (seen) => seen >= 5,
    ({ columns: { leaf } }, row) => {
      if (leaf[row] !== 0n) throw new Error('the predicate let another leaf pass')
    },
  ),
  take(
    opens,
    () => paths.has('/tmp/a-path-of-the-test'),
    (batch, row) => {
      paths.add(batch.text('path', row))
      dfds.add(batch.columns.dfd[row] ?? 0n)
    },
  ),
])
const lost = await stalled.counts()
let kept = 0
let told = 0
for await (const batch of stalled) {
  kept += batch.count
  told += batch.dropped
  if (kept + told >= lost.matched) break
}
const after = await text(vm)
const memoryAccess = await events.subscribe({ trap: { kind: 'memory-access' } } as never).then(
  () => 'subscribed',
  (error: unknown) => (CloudAppError.is(error) ? `${error.code} ${error.message}` : String(error)),
)
const said = {
  support: await events.support(),
  switches: { ...results[0], roots: roots.size, chained },
  leaves: results[1],
  opens: { ...results[2], dfds: [...dfds] },
  stalled: { ...lost, kept, told },
  hidden: before === meanwhile && before === after,
  at: trap.at,
  memoryAccess,
}
console.log(JSON.stringify(said, plain))
