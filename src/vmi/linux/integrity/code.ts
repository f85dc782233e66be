import { PageFlags, type WalkPlan, type WalkResult } from '../../memory.js'
import type { Module } from '../modules.js'
import { fixedText, view } from '../read.js'
import type { Kernel } from './kernel.js'
import { RangeMap } from './ranges.js'

/** Whose a range of executable memory is. */
export interface CodeOwner {
  readonly kind: 'kernel' | 'module' | 'ftrace' | 'kprobe' | 'bpf'
  readonly name: string
}

/** Executable memory that none of the kernel's books accounts for. */
export interface UnlistedCode {
  readonly start: bigint
  readonly end: bigint
  /** Physical address of its first page: tells two loads at the same virtual address apart. */
  readonly physical: bigint
}

/** One look at all executable kernel memory. */
export interface CodeMap {
  /** Code that entries, gates and hooks may lead to. */
  readonly known: RangeMap<CodeOwner>
  readonly unlisted: readonly UnlistedCode[]
}

interface Run {
  start: bigint
  end: bigint
  readonly physical: bigint
}

const PAGE = 4096n
/** Executable runs of one half of the kernel's addresses; a sound kernel has some hundreds. */
const RUN_LIMIT = 16_384
/** Where the kernel image and its modules lie: Documentation/arch/x86/x86_64/mm.rst. */
const IMAGE_AREA = 0xffff_ffff_8000_0000n
const LIST_LIMIT = 65_536
/** Pages of unlisted code whose content is looked at; more than that is all reported. */
const FILL_PAGES = 4096

/**
 * Reads which kernel memory is executable, then (in that order, so that what is loaded meanwhile is in the books) the
 * books: kernel text, modules, ftrace trampolines, kprobe slots, BPF programs.
 */
export async function readCodeMap(
  kernel: Kernel,
  modules: () => Promise<readonly Module[]>,
  options: { readonly signal?: AbortSignal },
): Promise<CodeMap> {
  const runs = await executableRuns(kernel, options)
  const listed = await modules()
  const known = await owners(kernel, listed, runs, options)
  return { known: known.callable, unlisted: await unlisted(kernel, runs, known.accounted, options) }
}

/**
 * Executable mappings of the kernel half, runs that touch put together. Where the image and modules lie is looked at
 * first and in any case; page tables that point at themselves have the rest go on for ever.
 */
async function executableRuns(kernel: Kernel, options: { signal?: AbortSignal }): Promise<Run[]> {
  const runs: Run[] = []
  const lowest = kernel.levels === 5 ? 0xff00_0000_0000_0000n : 0xffff_8000_0000_0000n
  const areas = [
    { start: IMAGE_AREA, end: 1n << 64n },
    { start: lowest, end: IMAGE_AREA },
  ]
  for (const { start, end } of areas) {
    const found = await kernel.memory.pages(
      { space: kernel.space, start, end, want: PageFlags.Execute, limit: RUN_LIMIT },
      options,
    )
    if (found.end === 'limit') {
      const why = `map more executable memory than a kernel has, or map it over and over: looked at up to 0x${found.next.toString(16)}`
      kernel.broken.note({ what: 'the page tables of the kernel' }, start, why)
    }
    for (let i = 0; i < found.runs; i++) {
      const virtual = found.virtual[i] as bigint
      const end = virtual + (found.sizes[i] as bigint)
      const last = runs.at(-1)
      if (last !== undefined && last.end === virtual) last.end = end
      else runs.push({ start: virtual, end, physical: found.physical[i] as bigint })
    }
  }
  return runs
}

async function owners(
  kernel: Kernel,
  modules: readonly Module[],
  runs: readonly Run[],
  options: { signal?: AbortSignal },
): Promise<{ callable: RangeMap<CodeOwner>; accounted: RangeMap<CodeOwner> }> {
  const callable: { start: bigint; end: bigint; value: CodeOwner }[] = []
  const add = (list: typeof callable, start: bigint, end: bigint, kind: CodeOwner['kind'], name: string) =>
    list.push({ start, end, value: { kind, name } })

  add(callable, kernel.symbol('_stext'), kernel.symbol('_etext'), 'kernel', 'kernel text')
  for (const module of modules) {
    for (const { start, end, kind } of module.ranges) {
      if (kind.endsWith('text')) add(callable, start, end, 'module', module.name)
    }
  }
  const accounted = [...callable]
  // The image is mapped executable in large pages up to a little behind its text.
  add(accounted, kernel.symbol('_text'), kernel.symbol('_end'), 'kernel', 'kernel image')

  const found = books(kernel)
  const results = await kernel.walk(
    found.map((book) => book.plan),
    options,
    (i) => found[i],
  )
  found.forEach(({ take }, i) => {
    take(
      results[i] as WalkResult,
      (start, end, kind, name, slack) => {
        add(slack === undefined ? callable : accounted, start, end, kind, name)
        if (slack === undefined) add(accounted, start, end, kind, name)
      },
      runs,
    )
  })
  const realMode = await realModeTrampoline(kernel, options)
  if (realMode !== undefined) add(accounted, realMode.start, realMode.end, 'kernel', 'real-mode trampoline')
  return { callable: new RangeMap(callable), accounted: new RangeMap(accounted) }
}

type Take = (start: bigint, end: bigint, kind: CodeOwner['kind'], name: string, slack?: 'accounted only') => void

interface CodeBook {
  readonly what: string
  readonly plan: WalkPlan
  readonly take: (result: WalkResult, give: Take, runs: readonly Run[]) => void
}

/** The kernel's lists of code it made itself. A list this kernel does not have is left out. */
function books(kernel: Kernel): CodeBook[] {
  const { space } = kernel
  const list = (head: bigint, node: number, columns: [number, number][]): WalkPlan => ({
    kind: 'list',
    space,
    head,
    node,
    columns: columns.map(([offset, size]) => ({ path: [offset], size })),
    limit: LIST_LIMIT,
  })
  const found: CodeBook[] = []
  const trampolines = kernel.trySymbol('ftrace_ops_trampoline_list')
  if (trampolines !== undefined && kernel.has('ftrace_ops.list')) {
    found.push({
      what: 'the list of ftrace trampolines',
      plan: list(trampolines, kernel.offset('ftrace_ops.list'), [
        [kernel.offset('ftrace_ops.trampoline'), 8],
        [kernel.offset('ftrace_ops.trampoline_size'), 8],
      ]),
      take: (result, give) =>
        eachPair(result, (start, size) => give(start, start + size, 'ftrace', 'ftrace trampoline')),
    })
  }
  for (const name of ['kprobe_insn_slots', 'kprobe_optinsn_slots']) {
    const cache = kernel.trySymbol(name)
    if (cache === undefined || !kernel.has('kprobe_insn_page.insns')) continue
    found.push({
      what: `the list of ${name}`,
      plan: list(cache + BigInt(kernel.offset('kprobe_insn_cache.pages')), kernel.offset('kprobe_insn_page.list'), [
        [kernel.offset('kprobe_insn_page.insns'), 8],
      ]),
      take: (result, give) => each(result, (start) => give(start, start + PAGE, 'kprobe', 'kprobe slots')),
    })
  }
  const bpf = kernel.trySymbol('bpf_kallsyms')
  if (bpf !== undefined && kernel.has('bpf_ksym.lnode')) {
    found.push({
      what: 'the list of BPF programs',
      plan: list(bpf, kernel.offset('bpf_ksym.lnode'), [
        [kernel.offset('bpf_ksym.start'), 8],
        [kernel.offset('bpf_ksym.end'), 8],
        [kernel.offset('bpf_ksym.name'), 64],
      ]),
      take: (result, give) =>
        eachPair(result, (start, end, row) =>
          give(start, end, 'bpf', fixedText((result.columns[2] as Uint8Array).subarray(row * 64, row * 64 + 64))),
        ),
    })
  }
  const packs = kernel.trySymbol('pack_list')
  if (packs !== undefined && kernel.has('bpf_prog_pack.ptr')) {
    found.push({
      what: 'the list of BPF program packs',
      plan: list(packs, kernel.offset('bpf_prog_pack.list'), [[kernel.offset('bpf_prog_pack.ptr'), 8]]),
      // A pack is one allocation with a guard page behind it: all that is mapped on from its start is the pack.
      take: (result, give, runs) =>
        each(result, (start) => {
          const run = runs.find((r) => r.start <= start && start < r.end)
          if (run !== undefined) give(start, run.end, 'bpf', 'BPF program pack', 'accounted only')
        }),
    })
  } else {
    const areas = bpfAreas(kernel)
    if (areas !== undefined) found.push(areas)
  }
  return found
}

/** Before 5.18 each BPF program is an allocation of its own, known by who asked vmalloc for it. */
function bpfAreas(kernel: Kernel): CodeBook | undefined {
  const areas = kernel.trySymbol('vmap_area_list')
  if (areas === undefined || !kernel.has('vm_struct.caller')) return undefined
  const vm = kernel.offset('vmap_area.vm')
  return {
    what: 'the list of vmalloc areas',
    plan: {
      kind: 'list',
      space: kernel.space,
      head: areas,
      node: kernel.offset('vmap_area.list'),
      columns: [
        { path: [kernel.offset('vmap_area.va_start')], size: 8 },
        { path: [kernel.offset('vmap_area.va_end')], size: 8 },
        { path: [vm, kernel.offset('vm_struct.caller')], size: 8 },
      ],
      limit: LIST_LIMIT,
    },
    take: (result, give) => {
      const callers = view(result.columns[2] as Uint8Array)
      eachPair(result, (start, end, row) => {
        const caller = kernel.symbolAt(callers.getBigUint64(row * 8, true))
        if (caller?.name.startsWith('bpf_jit')) give(start, end, 'bpf', 'BPF program', 'accounted only')
      })
    },
  }
}

/** The code other CPUs start on lies in the first MiB, executable in the direct map (arch/x86/realmode/init.c). */
async function realModeTrampoline(
  kernel: Kernel,
  options: { signal?: AbortSignal },
): Promise<{ start: bigint; end: bigint } | undefined> {
  const header = kernel.trySymbol('real_mode_header')
  const blob = kernel.trySymbol('real_mode_blob')
  const end = kernel.trySymbol('real_mode_blob_end')
  if (header === undefined || blob === undefined || end === undefined) return undefined
  const start = await kernel.pointer(header, options)
  return start === 0n ? undefined : { start, end: start + ((end - blob + PAGE - 1n) / PAGE) * PAGE }
}

async function unlisted(
  kernel: Kernel,
  runs: readonly Run[],
  accounted: RangeMap<CodeOwner>,
  options: { signal?: AbortSignal },
): Promise<UnlistedCode[]> {
  const gaps: UnlistedCode[] = []
  for (const run of runs) {
    for (const gap of accounted.gaps(run.start, run.end)) {
      const start = (gap.start + PAGE - 1n) & -PAGE
      const end = gap.end & -PAGE
      if (start < end) gaps.push({ start, end, physical: run.physical + (start - run.start) })
    }
  }
  const pages = gaps.reduce((sum, gap) => sum + Number((gap.end - gap.start) / PAGE), 0)
  if (pages === 0 || pages > FILL_PAGES) return gaps
  // Caches of executable memory keep what is free in them filled with INT3 or zero.
  const contents = await kernel.memory.read(
    gaps.map((gap) => ({ space: kernel.space, at: gap.start, length: Number(gap.end - gap.start) })),
    options,
  )
  return gaps.filter((_, i) => contents[i]?.bytes.some((byte) => byte !== 0 && byte !== 0xcc))
}

function each(result: WalkResult, visit: (value: bigint, row: number) => void): void {
  const values = view(result.columns[0] as Uint8Array)
  for (let row = 0; row < result.rows; row++) {
    if (result.cells[row * result.columns.length] === 0) visit(values.getBigUint64(row * 8, true), row)
  }
}

function eachPair(result: WalkResult, visit: (a: bigint, b: bigint, row: number) => void): void {
  const seconds = view(result.columns[1] as Uint8Array)
  each(result, (a, row) => visit(a, seconds.getBigUint64(row * 8, true), row))
}
