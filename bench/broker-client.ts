import { createInterface } from 'node:readline'
import { type Delegation, loadKey } from '@cloudapp/sdk'
import { type BrokerConnection, connectBroker } from '@cloudapp/sdk/broker'

// A holder in a process of its own. A line on stdin is an order, a line on stdout its answer.
const PHYSICAL = 0n
const [keyFile, socket] = process.argv.slice(2) as [string, string]
const key = await loadKey(keyFile)
const held: { readonly connection: BrokerConnection; readonly vm: Delegation<'memory.read'> }[] = []
const one = () => held[0]?.vm as Delegation<'memory.read'>
let flooding = false

interface Order {
  readonly op: string
  readonly token?: `cloudapp1.${string}`
  readonly count?: number
  readonly bytes?: number
}

/** Microseconds of each of `count` calls, one at a time, after some that do not count. */
async function each(count: number, call: () => Promise<unknown>): Promise<number[]> {
  for (let i = 0; i < count / 4; i++) await call()
  const took: number[] = []
  for (let i = 0; i < count; i++) {
    const start = performance.now()
    await call()
    took.push((performance.now() - start) * 1000)
  }
  return took
}

const ORDERS: Record<string, (order: Order) => Promise<unknown>> = {
  async open({ token = 'cloudapp1.', count = 1 }) {
    await Promise.all(held.splice(0).map(({ connection }) => connection.close()))
    for (let i = 0; i < count; i++) {
      const connection = await connectBroker({ path: socket, key })
      held.push({ connection, vm: await connection.redeem<'memory.read'>(token) })
    }
    return 'open'
  },
  read: ({ count = 1 }) => {
    const request = [{ space: PHYSICAL, at: 0x10_0000n, length: 8 }]
    return each(count, () => one().memory.read(request))
  },
  batch: ({ count = 1 }) => {
    const batch = Array.from({ length: 256 }, (_, i) => ({ space: PHYSICAL, at: BigInt(i) * 0x1_0000n, length: 8 }))
    return each(count, () => one().memory.read(batch))
  },
  addresses: ({ count = 1 }) => {
    const at = BigUint64Array.from({ length: 256 }, (_, i) => BigInt(i) * 0x1_0000n)
    return each(count, () => one().memory.read([{ space: PHYSICAL, at, length: 8 }]))
  },
  call: ({ count = 1 }) => each(count, () => one().budget()),
  /** GB/s over the first `count` chunks of memory, four on their way at a time. */
  async stream({ count = 1, bytes = 1 }) {
    let next = 0
    const start = performance.now()
    const runner = async () => {
      while (next < count)
        await one().memory.read([{ space: PHYSICAL, at: BigInt(next++) * BigInt(bytes), length: bytes }])
    }
    await Promise.all(Array.from({ length: 4 }, runner))
    return (count * bytes) / 1e6 / (performance.now() - start)
  },
  /** Reads on every session until it is refused; when each last succeeded, in ns of the machine's clock. */
  async busy() {
    const request = [{ space: PHYSICAL, at: 0x10_0000n, length: 8 }]
    const ends = held.map(async ({ vm }) => {
      let last = 0n
      for (;;) {
        try {
          await vm.memory.read(request)
          last = process.hrtime.bigint()
        } catch {
          return String(last)
        }
      }
    })
    process.stdout.write('"busy"\n')
    return Promise.all(ends)
  },
  /** Keeps `count` reads of `bytes` on their way until told to stop. */
  async flood({ count = 1, bytes = 1 }) {
    flooding = true
    const runner = async () => {
      // What is refused for the queue's length is asked again: that is what a flood is.
      while (flooding)
        await one()
          .memory.read([{ space: PHYSICAL, at: 0n, length: bytes }])
          .catch(() => undefined)
    }
    for (let i = 0; i < count; i++) void runner()
    return 'flooding'
  },
  async stop() {
    flooding = false
    return 'stopped'
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line) as Order
  const run = ORDERS[order.op]
  if (run === undefined) throw new Error(`no order ${order.op}`)
  process.stdout.write(`${JSON.stringify(await run(order))}\n`)
}
process.exit(0)
