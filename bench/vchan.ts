import type { XenGuest } from '../test/rig/xen/lib/guest.js'
import type { XenHost } from '../test/rig/xen/lib/host.js'
import type { Measurement } from './measure.js'
import { onXen } from './on-xen.js'

const RING = 65_536
/** Some seconds: the first half second of a Node process under emulation is its compiler's, not the channel's. */
const BYTES = 256 * 1024 * 1024
const PINGS = 500
/** By turns, so that what else the machine does meets both. */
const ROUNDS = 5

const MODULES = ['xen-evtchn', 'xen-gntdev', 'xen-gntalloc', 'xenfs']

type End = 'ours' | 'c'

const program = (end: End, server: boolean, domid: number, path: string, mode: string): string =>
  end === 'ours'
    ? `cd /app && exec node vchan.mjs ${server ? 'serve' : 'connect'} ${domid} ${path} ${RING} ${mode}`
    : `exec /app/vchan-peer ${server ? 'server' : 'client'} ${domid} ${path} ${RING} ${mode}`

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1] as number

/**
 * A vchan between two guests of an emulated Xen host, both ends ours, beside both ends a C program over Debian's libxenvchan,
 * with the same rings and pieces: programs/vchan.ts, programs/vchan-peer.c.
 */
export function benchVchan(progress: (message: string) => void): Promise<Measurement[]> {
  return onXen(progress, (xen) => measure(xen, progress))
}

async function measure(xen: XenHost, progress: (message: string) => void): Promise<Measurement[]> {
  const guest = (name: string) =>
    xen.createGuest({ name, kind: 'pvh', node: true, memory: '384M', modules: MODULES, progress })
  const [server, client] = await Promise.all([guest('bench-a'), guest('bench-b')])
  let serial = 0
  const once = async (end: End, serve: string, ask: string): Promise<number> => {
    const path = `/local/domain/${server.domid}/data/bench/${serial++}`
    const log = `/tmp/bench-${serial}`
    await server.run(`(${program(end, true, client.domid, path, serve)}) > ${log} 2>&1 &`)
    await server.run(`timeout 120 sh -c 'until grep -q ^open ${log}; do sleep 0.2; done'`, { timeoutMs: 150_000 })
    const { stdout } = await client.run(program(end, false, server.domid, path, ask), { timeoutMs: 600_000 })
    const value = /^(?:MB\/s|us) ([\d.]+)$/m.exec(stdout)?.[1]
    if (value === undefined) throw new Error(`the benchmark said:\n${stdout}${await said(server, log)}`)
    return Number(value)
  }
  const both = async (what: string, serve: string, ask: string): Promise<Record<End, number>> => {
    const took: Record<End, number[]> = { ours: [], c: [] }
    for (let round = 0; round < ROUNDS; round++) {
      for (const end of ['c', 'ours'] as const) {
        progress(`${what}, ${end === 'ours' ? 'ours' : 'C'} (${round + 1} of ${ROUNDS})`)
        took[end].push(await once(end, serve, ask))
      }
    }
    return { ours: median(took.ours), c: median(took.c) }
  }
  const flow = await both('vchan: throughput', `source ${BYTES} ${RING}`, `sink ${BYTES} ${RING}`)
  const trip = await both('vchan: round trip', 'echo', `ping ${PINGS}`)
  const mb = (value: number) => `${value.toFixed(1)} MB/s`
  const us = (value: number) => `${value.toFixed(0)} us`
  return [
    {
      name: 'vchan.throughput.ratio-to-c',
      value: flow.ours / flow.c,
      unit: '',
      note: `of the C program's throughput; ${mb(flow.ours)}, in C ${mb(flow.c)} (emulated)`,
    },
    {
      name: 'vchan.round-trip.ratio-to-c',
      value: trip.ours / trip.c,
      unit: '',
      note: `of the C program's round trip of one byte; ${us(trip.ours)}, in C ${us(trip.c)} (emulated)`,
    },
  ]
}

const said = async (guest: XenGuest, log: string): Promise<string> =>
  (await guest.run(`cat ${log}`, { check: false })).stdout
