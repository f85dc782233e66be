import { describe, expect, it } from 'vitest'
import type { VcpuReader } from '../../../src/vmi/guest.js'
import { choose, type Found, isSound, ticks } from '../../../src/vmi/linux/choose.js'
import { DIRECT, TinyKernel } from './ram.js'

const OLD = 0x2_0000
const NEW = 0x8_0000
const TASK = 0x1000
const CLOCK = 0x3000
const TICKS = 0x4000

/** Two kernels in one RAM, each with a task list and a clock of its own; the old one's has gone further or not. */
function twoKernels(clocks: { old: bigint; now: bigint }) {
  const kernel = TinyKernel.create({}, {})
  const found = [OLD, NEW].map((base, i): Found => {
    const at = base + TASK
    kernel.ring(at + 0x20, at + 0x120)
    kernel.ram.writeBigUInt64LE(i === 0 ? clocks.old : clocks.now, base + CLOCK + 8 + 16)
    kernel.ram.writeBigUInt64LE(BigInt(base), base + TICKS)
    const boot = { ...kernel.profile.boot, textBase: DIRECT + BigInt(base), physicalBase: BigInt(base) }
    const facts = {
      ...kernel.profile.image,
      symbols: { init_task: TASK, tk_core: CLOCK, jiffies_64: TICKS },
      fields: { 'task_struct.tasks': [0x20, 16] as const, 'timekeeper.xtime_sec': [16, 8] as const },
    }
    return { boot, image: { facts, section: async () => undefined } }
  })
  return { kernel, found, old: found[0] as Found, now: found[1] as Found }
}

/** Root of a page table that maps DIRECT + 4 KiB pages, but of one kernel only. */
function rootOf(kernel: TinyKernel, base: number): bigint {
  const tables = [0xf_0000, 0xf_1000, 0xf_2000, 0xf_3000].map((at) => at - (base === OLD ? 0 : 0x8000))
  const [root = 0, upper = 0, directory = 0, pages = 0] = tables
  kernel.ram.writeBigUInt64LE(BigInt(upper) | 3n, root + 8 * Number((DIRECT >> 39n) & 511n))
  kernel.ram.writeBigUInt64LE(BigInt(directory) | 3n, upper)
  kernel.ram.writeBigUInt64LE(BigInt(pages) | 3n, directory)
  kernel.ram.writeBigUInt64LE(BigInt(base) | 3n, pages + 8 * (base >> 12))
  return BigInt(root)
}

const registers = (...roots: bigint[]): VcpuReader => ({
  registers: async () => roots.map((cr3, index) => ({ index, cr3 })),
})

describe('of several kernels in RAM', () => {
  it('the one whose task list is whole runs', async () => {
    const { kernel, found, now } = twoKernels({ old: 900n, now: 100n })
    kernel.pointer(OLD + TASK + 0x120, 0x10_0000_0000n)
    expect(await isSound(kernel.memory, found[0] as Found)).toBe(false)
    expect(await choose(kernel.memory, found, undefined, {})).toEqual({ found: now, sound: true })
  })

  it('the one whose clock is furthest runs', async () => {
    const later = twoKernels({ old: 100n, now: 900n })
    expect((await choose(later.kernel.memory, later.found, undefined, {}))?.found).toBe(later.now)
    const earlier = twoKernels({ old: 900n, now: 100n })
    expect((await choose(earlier.kernel.memory, earlier.found, undefined, {}))?.found).toBe(earlier.old)
  })

  it('the one a vCPU runs on runs, whatever the clocks say', async () => {
    const { kernel, found, now } = twoKernels({ old: 900n, now: 100n })
    const root = rootOf(kernel, NEW)
    expect((await choose(kernel.memory, found, registers(0n, root), {}))?.found).toBe(now)
    // In user space with page-table isolation, CR3 is the page above the kernel's root.
    expect((await choose(kernel.memory, found, registers((root | 0x1000n) + 5n), {}))?.found).toBe(now)
  })

  it('a broken one is better than none, and says so', async () => {
    const { kernel, old } = twoKernels({ old: 1n, now: 1n })
    kernel.pointer(OLD + TASK + 0x120, OLD + TASK + 0x120)
    expect(await choose(kernel.memory, [old], undefined, {})).toEqual({ found: old, sound: false })
    expect(await choose(kernel.memory, [], undefined, {})).toBeUndefined()
  })

  it('ticks tell a live one', async () => {
    const { kernel, now } = twoKernels({ old: 1n, now: 1n })
    expect(await ticks(kernel.memory, now, {})).toBe(BigInt(NEW))
  })
})
