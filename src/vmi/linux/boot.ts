import type { CallOptions, GuestMemory, ReadRequest, Space } from '../memory.js'
import { LIMITS, PHYSICAL, virtualSpace } from '../memory.js'
import { type BootFacts, IMAGE_SIZE, type ImageFacts, KERNEL_MAP } from './profile.js'
import { fixedText, view } from './read.js'

/** x86-64 with CONFIG_DYNAMIC_MEMORY_LAYOUT off, by levels: Documentation/arch/x86/x86_64/mm.rst. */
const FIXED_LAYOUT = {
  4: {
    pageOffset: 0xffff_8880_0000_0000n,
    vmallocBase: 0xffff_c900_0000_0000n,
    vmemmapBase: 0xffff_ea00_0000_0000n,
  },
  5: {
    pageOffset: 0xff11_0000_0000_0000n,
    vmallocBase: 0xffa0_0000_0000_0000n,
    vmemmapBase: 0xffd4_0000_0000_0000n,
  },
} as const

const STEP = 2n * 1024n * 1024n
const MAX_CPUS = 8192

/** Physical address a virtual one maps to, or undefined. */
export async function translate(
  memory: GuestMemory,
  space: Space,
  at: bigint,
  options: CallOptions = {},
): Promise<bigint | undefined> {
  const page = at & ~0xfffn
  const result = await memory.pages({ space, start: page, end: page + 4096n, limit: 1 }, options)
  if (result.runs < 1) return undefined
  const virtual = result.virtual[0] as bigint
  const size = result.sizes[0] as bigint
  if (at < virtual || at >= virtual + size) return undefined
  return (result.physical[0] as bigint) + (at - virtual)
}

/** A kernel found at work, or why it is none. */
export type BootResult = { readonly boot: BootFacts } | { readonly reason: string }

/**
 * Works out where a boot placed a known image whose `_text` lies at a physical address, and checks that a live kernel is
 * there: `phys_base` in the image gives the virtual base, the kernel's own page table must map that base to this
 * address, and the first task must be the idle task. A stale copy, a file, or another VM's kernel fails one of these.
 */
export async function resolveBoot(
  memory: GuestMemory,
  image: ImageFacts,
  physicalBase: bigint,
  options: CallOptions = {},
): Promise<BootResult> {
  const place = (name: string): bigint | undefined => {
    const value = image.symbols[name]
    return typeof value === 'number' ? physicalBase + BigInt(value) : undefined
  }
  const root = place('init_top_pgt') ?? place('swapper_pg_dir')
  const task = place('init_task')
  const physBase = place('phys_base')
  const comm = image.fields['task_struct.comm']
  for (const [name, found] of Object.entries({ init_top_pgt: root, init_task: task, phys_base: physBase, comm }))
    if (found === undefined || found === null) return { reason: `its image names no ${name}` }
  const wanted: [string, bigint | undefined, number][] = [
    ['phys_base', physBase, 8],
    ['comm', (task as bigint) + BigInt((comm as readonly [number, number])[0]), 16],
    ['__pgtable_l5_enabled', place('__pgtable_l5_enabled'), 4],
    ['page_offset_base', place('page_offset_base'), 8],
    ['vmalloc_base', place('vmalloc_base'), 8],
    ['vmemmap_base', place('vmemmap_base'), 8],
    ['nr_cpu_ids', place('nr_cpu_ids'), 4],
  ]
  const present = wanted.filter((entry): entry is [string, bigint, number] => entry[1] !== undefined)
  const requests = present.map(([, at, length]): ReadRequest => ({ space: PHYSICAL, at, length }))
  const results = await memory.read(requests, options)
  const values = new Map<string, Uint8Array>()
  for (const [i, [name]] of present.entries()) {
    const result = results[i]
    if (result === undefined || result.faults.length > 0) return { reason: `${name} is outside RAM` }
    values.set(name, result.bytes)
  }
  const u64 = (name: string) => {
    const bytes = values.get(name)
    return bytes && view(bytes).getBigUint64(0, true)
  }
  const u32 = (name: string) => {
    const bytes = values.get(name)
    return bytes && view(bytes).getUint32(0, true)
  }
  const idle = fixedText(values.get('comm') as Uint8Array)
  if (!idle.startsWith('swapper')) return { reason: 'init_task is not the idle task there' }
  const textBase = BigInt.asUintN(64, physicalBase - (u64('phys_base') as bigint) + KERNEL_MAP)
  if (textBase < KERNEL_MAP || textBase >= KERNEL_MAP + IMAGE_SIZE || textBase % STEP !== 0n)
    return { reason: `phys_base gives 0x${textBase.toString(16)} for _text` }
  const taskAddress = textBase + ((task as bigint) - physicalBase)
  for (const levels of u32('__pgtable_l5_enabled') === 0 ? ([4, 5] as const) : ([5, 4] as const)) {
    const space = virtualSpace(root as bigint, levels)
    if ((await translate(memory, space, textBase, options)) !== physicalBase) continue
    if ((await translate(memory, space, taskAddress, options)) !== task) continue
    const fixed = FIXED_LAYOUT[levels]
    const pageOffset = u64('page_offset_base') ?? fixed.pageOffset
    if ((await translate(memory, space, pageOffset + physicalBase, options)) !== physicalBase)
      return { reason: `its direct map is not at 0x${pageOffset.toString(16)}` }
    const cpus = u32('nr_cpu_ids') ?? 1
    return {
      boot: {
        textBase,
        physicalBase,
        root: root as bigint,
        levels,
        pageOffset,
        vmallocBase: u64('vmalloc_base') ?? fixed.vmallocBase,
        vmemmapBase: u64('vmemmap_base') ?? fixed.vmemmapBase,
        cpus: Math.min(Math.max(cpus, 1), MAX_CPUS),
      },
    }
  }
  return { reason: 'its page table does not map the kernel to itself' }
}

/**
 * Where in RAM the image with this build id lies: the kernel is placed at a multiple of 2 MiB (CONFIG_PHYSICAL_ALIGN),
 * so its build id, at a known distance from `_text`, is looked for at each.
 */
export async function probeBuildId(
  memory: GuestMemory,
  buildId: Uint8Array,
  offset: number,
  options: CallOptions = {},
): Promise<bigint[]> {
  // One search, and so bounded: a guest can make its address space end as far away as it likes.
  const { matches } = await memory.search(
    {
      space: PHYSICAL,
      start: 0n,
      end: memory.end,
      patterns: [buildId],
      align: Number(STEP),
      offset: offset % Number(STEP),
      limit: LIMITS.matches,
    },
    options,
  )
  return matches.map(({ at }) => at - BigInt(offset)).filter((at) => at >= 0n)
}
