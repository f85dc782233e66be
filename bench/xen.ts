import type { XenHost } from '../test/rig/xen/lib/host.js'
import type { Measurement } from './measure.js'
import { onXen } from './on-xen.js'

interface Ratio {
  readonly name: string
  /** Nanoseconds of one page or entry. */
  readonly ours: number
  readonly c: number
}

const MIB = 256

const WHAT: Readonly<Record<string, [name: string, what: string]>> = {
  'xen.map': ['xen.map.ratio-to-c', 'mapping a page, 512 in a call'],
  'xen.read-batch256.4096': ['xen.read-batch256.ratio-to-c', 'a page by its kernel address, in batches of 256'],
  'xen.read-batch256.8': ['xen.read-batch256-8.ratio-to-c', '8 bytes by their kernel address, in batches of 256'],
}

/** The xen: source in dom0 of an emulated Xen host, beside a plain C program there doing the same work: bench.ts, bench.c. */
export function benchXen(progress: (message: string) => void): Promise<Measurement[]> {
  return onXen(progress, (xen) => measure(xen, progress))
}

async function measure(xen: XenHost, progress: (message: string) => void): Promise<Measurement[]> {
  const guest = await xen.createGuest({ name: 'bench', kind: 'pvh', memory: `${MIB}M`, progress })
  progress('measuring in dom0, beside the C program')
  const { stdout } = await xen.dom0.node(['bench.mjs', 'bench', String(MIB)], { timeoutMs: 900_000 })
  const ratios: Ratio[] = JSON.parse(stdout)
  const memory = ratios.map(({ name, ours, c }) => {
    const [line = name, what = name] = WHAT[name] ?? []
    const note = `of the C program's speed; ${what}: ${ours.toFixed(0)} ns, in C ${c.toFixed(0)} ns (emulated)`
    return { name: line, value: c / ours, unit: '', note }
  })
  // Two programs that hand each other bytes: nothing but switches.
  await guest.run('(yes | cat > /dev/null) > /dev/null 2>&1 &')
  const asked = await xen.dom0.node(['bench-events.mjs', 'bench', String(guest.domid)], { timeoutMs: 900_000 })
  const rate: { ours: number; c: number } = JSON.parse(asked.stdout)
  const note = `of the C program's rate; CR3 writes: ${rate.ours.toFixed(0)}/s, in C ${rate.c.toFixed(0)}/s (emulated)`
  return [...memory, { name: 'xen.events.ratio-to-c', value: rate.ours / rate.c, unit: '', note }]
}
