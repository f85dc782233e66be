import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import type { WalkPlan, WalkResult } from '../memory.js'
import { profileError } from './errors.js'
import type { KernelProfile } from './profile.js'
import { type GuestReader, view } from './read.js'
import { Rows, throwUnlessComplete, type WalkEnd, walkSteadily } from './walks.js'

/** enum module_state: include/linux/module.h. */
const STATES = ['live', 'coming', 'going', 'unformed'] as const

/** One piece of memory of a module. */
export interface ModuleRange {
  readonly start: bigint
  /** Exclusive. */
  readonly end: bigint
  /** `text` may be executed. Before Linux 6.4, everything behind the text of one allocation is `data`. */
  readonly kind: 'text' | 'data' | 'rodata' | 'ro-after-init' | 'init-text' | 'init-data' | 'init-rodata'
}

/** One loaded module. */
export interface Module {
  readonly name: string
  /** Where its text starts: the address of /proc/modules. */
  readonly base: bigint
  /** Bytes of all its memory: the size of /proc/modules. */
  readonly size: number
  readonly state: (typeof STATES)[number] | 'unknown'
  /** Users, as in /proc/modules; -1 where the kernel keeps none (no module unloading). */
  readonly refcount: number
  /** Its memory. Ranges without bytes are left out. */
  readonly ranges: readonly ModuleRange[]
  /** Address of the `struct module`. */
  readonly module: bigint
  /** Address of its `struct mod_kallsyms` (symbols); 0n if it has none. */
  readonly kallsyms: bigint
}

export interface ModuleOptions {
  /** At most so many modules; 16,384 by default. */
  readonly limit?: number
}

export interface ModuleList extends WalkEnd {
  readonly modules: Module[]
}

/** enum mod_mem_type: include/linux/module.h, since 6.4. */
const MEM_KINDS = ['text', 'data', 'rodata', 'ro-after-init', 'init-text', 'init-data', 'init-rodata'] as const
/** MODULE_REF_BASE: include/linux/module.h; a live module holds one reference on itself. */
const MODULE_REF_BASE = 1
const DEFAULT_LIMIT = 16_384
const MAX_LIMIT = 1_048_576

const NAME = 0
const STATE = 1
const MEMORY = 2
const KALLSYMS = 3
const REFCOUNT = 4
const INIT = 5

interface ModuleLayout {
  readonly columns: WalkPlan['columns']
  ranges(rows: Rows, row: number): { base: bigint; size: number; ranges: ModuleRange[] }
}

const layouts = new WeakMap<KernelProfile, ModuleLayout>()

function layoutOf(profile: KernelProfile): ModuleLayout {
  const known = layouts.get(profile)
  if (known !== undefined) return known
  const split = profile.has('module.mem')
  if (!split && !profile.has('module.core_layout'))
    throw profileError('module', 'struct module has neither "mem" (Linux 6.4) nor "core_layout" (before)')
  const field = (path: 'module.mem' | 'module.core_layout' | 'module.init_layout') => ({
    path: [profile.offset(path)],
    size: profile.sizeOf(path),
  })
  const columns = [
    { path: [profile.offset('module.name')], size: profile.sizeOf('module.name') },
    { path: [profile.offset('module.state')], size: 4 },
    field(split ? 'module.mem' : 'module.core_layout'),
    profile.has('module.kallsyms')
      ? { path: [profile.offset('module.kallsyms')], size: 8 }
      : { path: [profile.offset('module.state')], size: 4 },
    profile.has('module.refcnt')
      ? { path: [profile.offset('module.refcnt')], size: 4 }
      : { path: [profile.offset('module.state')], size: 4 },
    ...(split ? [] : [field('module.init_layout')]),
  ]
  const layout: ModuleLayout = { columns, ranges: split ? splitRanges(profile) : coreRanges(profile) }
  layouts.set(profile, layout)
  return layout
}

/** Since 6.4: `struct module_memory mem[MOD_MEM_NUM_TYPES]`. */
function splitRanges(profile: KernelProfile): ModuleLayout['ranges'] {
  const stride = profile.sizeOf('module_memory')
  const base = profile.offset('module_memory.base')
  const size = profile.offset('module_memory.size')
  return (rows, row) => {
    const mem = view(rows.bytes(MEMORY, row))
    const ranges: ModuleRange[] = []
    let total = 0
    for (const [i, kind] of MEM_KINDS.entries()) {
      if ((i + 1) * stride > mem.byteLength) break
      const start = mem.getBigUint64(i * stride + base, true)
      const length = mem.getUint32(i * stride + size, true)
      total += length
      if (length !== 0) ranges.push({ start, end: start + BigInt(length), kind })
    }
    return { base: mem.getBigUint64(base, true), size: total, ranges }
  }
}

/** Before 6.4: two `struct module_layout`, each one allocation: text, read-only data, data. */
function coreRanges(profile: KernelProfile): ModuleLayout['ranges'] {
  const baseAt = profile.offset('module_layout.base')
  const sizeAt = profile.offset('module_layout.size')
  const textAt = profile.offset('module_layout.text_size')
  const roAt = profile.offset('module_layout.ro_size')
  return (rows, row) => {
    const ranges: ModuleRange[] = []
    let total = 0
    for (const [column, init] of [
      [MEMORY, ''],
      [INIT, 'init-'],
    ] as const) {
      const layout = view(rows.bytes(column, row))
      const start = layout.getBigUint64(baseAt, true)
      const size = layout.getUint32(sizeAt, true)
      const text = Math.min(layout.getUint32(textAt, true), size)
      const readOnly = Math.max(text, Math.min(layout.getUint32(roAt, true), size))
      total += size
      const push = (from: number, to: number, kind: 'text' | 'rodata' | 'data') => {
        if (from < to) ranges.push({ start: start + BigInt(from), end: start + BigInt(to), kind: `${init}${kind}` })
      }
      push(0, text, 'text')
      push(text, readOnly, 'rodata')
      push(readOnly, size, 'data')
    }
    return { base: view(rows.bytes(MEMORY, row)).getBigUint64(baseAt, true), size: total, ranges }
  }
}

/** Lists the modules, newest first, as the kernel does. */
export async function listModules(
  linux: GuestReader & { readonly profile: KernelProfile },
  options: ModuleOptions,
  onBroken: 'throw' | 'report',
): Promise<ModuleList> {
  checkOptions('modules', options, ['limit'])
  const limit = options.limit ?? DEFAULT_LIMIT
  if (!Number.isInteger(limit) || limit < 1 || limit > MAX_LIMIT)
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `modules: limit must be 1…${MAX_LIMIT}`)
  const { profile, memory, space } = linux
  const head = profile.trySymbol('modules')
  // A kernel built without modules has no list of them.
  if (head === undefined) return { modules: [], end: 'complete', consistent: true }
  const layout = layoutOf(profile)
  const node = profile.offset('module.list')
  const plan: WalkPlan = { kind: 'list', space, head, node, columns: layout.columns, limit }
  const [walk] = (await walkSteadily(memory, [plan])) as [WalkResult]
  if (onBroken === 'throw') throwUnlessComplete('the module list', head, limit, walk)
  const rows = new Rows(walk, plan)
  const counted = profile.has('module.refcnt')
  const named = profile.has('module.kallsyms')
  const modules: Module[] = []
  for (let row = 0; row < rows.count; row++) {
    modules.push({
      name: rows.text(NAME, row),
      ...layout.ranges(rows, row),
      state: STATES[rows.u32(STATE, row)] ?? 'unknown',
      refcount: counted ? Math.max(0, rows.i32(REFCOUNT, row) - MODULE_REF_BASE) : -1,
      module: rows.addresses[row] as bigint,
      kallsyms: named ? rows.u64(KALLSYMS, row) : 0n,
    })
  }
  const { end, fault, consistent } = walk
  return fault === undefined ? { modules, end, consistent } : { modules, end, fault, consistent }
}
