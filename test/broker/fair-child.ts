import { createInterface } from 'node:readline'
import { type Broker, openBroker } from '../../src/broker/broker.js'
import { type BrokerConnection, connectBroker } from '../../src/broker/client.js'
import { encodeDigest, encodeSearch } from '../../src/broker/wire/scan.js'
import { encodeWalks } from '../../src/broker/wire/walk.js'
import { loadKey } from '../../src/capabilities/key-files.js'
import type { TokenText } from '../../src/capabilities/token.js'
import { tokenFromText } from '../../src/capabilities/token.js'
import type { MemoryReader } from '../../src/vmi/memory.js'
import { RawHolder, type RawStub } from './raw-holder.js'

// A broker, somebody who reads a little, or somebody who asks for a lot: each in a process of its own. A line on stdin is an
// order, a line on stdout its answer. Arguments of a broker: key file, register, state folder; of a holder: key file, the
// broker's public key.
const [socket, role, keyFile, ...rest] = process.argv.slice(2) as [string, string, string, ...string[]]
const key = await loadKey(keyFile)

interface Order {
  readonly op: string
  readonly token?: TokenText
  readonly sessions?: number
  readonly calls?: number
  readonly bytes?: number
  readonly ms?: number
}

let broker: Broker | undefined
if (role === 'broker') {
  const [register, state] = rest as [string, string]
  broker = await openBroker({ key, register, state, audit: { fsync: 'interval' } })
  await broker.listen({ socket })
}

let reader: { readonly connection: BrokerConnection; readonly memory: MemoryReader } | undefined
let flooders: RawHolder[] = []
let refused: string[] = []

/** Keeps `calls` calls on their way on each of `sessions` sessions. */
async function flood(order: Order, call: (holder: RawHolder, stub: RawStub) => Promise<unknown>): Promise<string> {
  const { token = 'cloudapp1.', sessions = 1, calls = 1 } = order
  const host = { socket, holder: key, brokerKey: { publicKey: rest[0] } } as never
  refused = []
  flooders = await Promise.all(Array.from({ length: sessions }, () => RawHolder.open(host)))
  for (const holder of flooders) {
    const stub = await holder.redeem(tokenFromText(token))
    const again = async () => {
      try {
        while (!holder.session.closed.aborted) await holder.session.settle(call(holder, stub))
      } catch (error) {
        if (!holder.session.closed.aborted) refused.push(String(error))
      }
    }
    for (let i = 0; i < calls; i++) void again()
  }
  return 'flooding'
}

let busy = false

const ORDERS: Record<string, (order: Order) => Promise<unknown>> = {
  async open({ token = 'cloudapp1.' }) {
    const connection = await connectBroker({ path: socket, key })
    reader = { connection, memory: (await connection.redeem<'memory.read'>(token)).memory }
    return 'open'
  },
  /** The broker's process works by itself, half a millisecond in each turn of its event loop: nobody can be fairer. */
  async work() {
    busy = true
    const work = () => {
      const end = performance.now() + 0.5
      while (performance.now() < end);
      if (busy) setImmediate(work)
    }
    work()
    return 'working'
  },
  async rest() {
    busy = false
    return 'resting'
  },
  /** Milliseconds of each small read, one at a time, for `ms`. */
  async read({ ms = 1000 }) {
    const request = [{ space: 0n, at: 0x1000n, length: 8 }]
    const took: number[] = []
    const end = performance.now() + ms
    for (let now = performance.now(); now < end; ) {
      await reader?.memory.read(request)
      const after = performance.now()
      took.push(after - now)
      now = after
    }
    return took
  },
  digests(order) {
    const message = encodeDigest({ space: 0n, start: 0n, end: BigInt(order.bytes ?? 4096) })
    return flood(order, (_, stub) => stub.digest(message, 0))
  },
  searches(order) {
    const pattern = Buffer.from('not to be found')
    const range = { space: 0n, start: 0n, end: BigInt(order.bytes ?? 4096) }
    const message = encodeSearch({ ...range, patterns: [pattern], limit: 10 })
    return flood(order, (_, stub) => stub.search(message, 0))
  },
  walks(order) {
    const plan = { kind: 'array', space: 0n, head: 0n, count: 1_000_000, stride: 64, limit: 200_000 } as const
    const message = encodeWalks([{ ...plan, columns: [{ path: [0], size: 8 }] }])
    return flood(order, (_, stub) => stub.walk(message, 0))
  },
  /** Redeems the same token again and again, and lets go of what it got. */
  redemptions(order) {
    const token = tokenFromText(order.token ?? 'cloudapp1.')
    return flood(order, async (holder) => {
      const number = await holder.number(token)
      await (holder.session.remote as { release(number: number): Promise<void> }).release(number)
    })
  },
  /** What of the flood was refused, which then was none. */
  async stop() {
    await Promise.all(flooders.map((holder) => holder.close()))
    return refused
  },
}

process.stdout.write('"ready"\n')
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line) as Order
  process.stdout.write(`${JSON.stringify(await ORDERS[order.op]?.(order))}\n`)
}
await broker?.close()
process.exit(0)
