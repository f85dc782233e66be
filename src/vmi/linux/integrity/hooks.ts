import type { Column, WalkPlan, WalkResult } from '../../memory.js'
import { view } from '../read.js'
import type { Candidate, Evidence } from './hit.js'
import type { Kernel } from './kernel.js'
import type { Whereabouts } from './where.js'

/** KPROBE_HASH_BITS, kernel/kprobes.c. */
const KPROBE_BUCKETS = 64
const LIMIT = 65_536
/** Users of ftrace at one time: tracers, probes and live patches, some tens on a busy machine. */
const CHAIN_LIMIT = 1024
/** Addresses that several kprobes share. */
const PARENTS = 4096
/** A filter hash of more buckets than this is not one (FTRACE_HASH_MAX_BITS is 12). */
const MAX_HASH_BITS = 16n
/** Hooks that are told of; a guest can make up any number. */
export const MAX_CANDIDATES = 1024
/** Functions of one hook that are named one by one. */
const NAMED = 64
const LOOKS = 4

/** True for the functions system calls are dispatched to. */
export function isSyscall(name: string): boolean {
  return /^(__(x64|ia32|x32)_(compat_)?sys_|__(do|se)_(compat_)?sys_|__ia32_compat_sys_|compat_sys_|sys_)/.test(name)
}

/** A candidate that says a function of the kernel leads where no book knows of code. */
export function diverted(
  kernel: Kernel,
  where: Whereabouts,
  from: { readonly address: bigint; readonly mechanism: string; readonly target: bigint; readonly looks?: number },
  evidence: Readonly<Record<string, Evidence>> = {},
): Candidate {
  const symbol = kernel.symbolAt(from.address)
  const place = where.name(from.address)
  const syscall = symbol !== undefined && isSyscall(symbol.name)
  const name = symbol?.name ?? place
  const short = syscall ? name.replace(/^.*?sys_/, '') : name
  return {
    hit: {
      id: `diverted:${name}:${from.mechanism}`,
      kind: syscall ? 'diverted-syscall' : 'diverted-function',
      title: `${syscall ? `System call ${short}` : `Kernel function ${name}`} is diverted by ${from.mechanism} at ${place} to ${where.name(from.target)}`,
      severity: 'critical',
      evidence: where.evidence(from.target, {
        function: name,
        at: from.address,
        place,
        mechanism: from.mechanism,
        ...evidence,
      }),
    },
    identity: `${from.mechanism}:${from.address}:${from.target}`,
    looks: from.looks ?? LOOKS,
  }
}

/** Callbacks of ftrace and directly attached trampolines that are in nobody's code. */
export async function ftraceHooks(
  kernel: Kernel,
  where: Whereabouts,
  options: { readonly signal?: AbortSignal },
): Promise<Candidate[]> {
  const filter = [kernel.offset('ftrace_ops.func_hash'), kernel.offset('ftrace_ops_hash.filter_hash')]
  const ops = await chain(
    kernel,
    kernel.symbol('ftrace_ops_list'),
    kernel.offset('ftrace_ops.next'),
    [
      { path: [kernel.offset('ftrace_ops.func')], size: 8 },
      { path: [kernel.offset('ftrace_ops.saved_func')], size: 8 },
      { path: [...filter, kernel.offset('ftrace_hash.size_bits')], size: 8 },
      { path: [...filter, kernel.offset('ftrace_hash.buckets')], size: 8 },
    ],
    options,
    'the list of who uses ftrace',
  )
  const end = kernel.trySymbol('ftrace_list_end')
  const candidates: Candidate[] = []
  for (const row of ops) {
    const [func, saved, bits, buckets] = row.values as [bigint, bigint, bigint, bigint]
    const target = [func, saved].find((address) => address !== 0n && !where.isKnown(address))
    if (row.address === end || target === undefined) continue
    if (candidates.length > MAX_CANDIDATES) break
    const functions = row.ok[3] ? await filtered(kernel, bits, buckets, options) : []
    const evidence = { ops: row.address }
    for (const { ip } of functions.slice(0, NAMED)) {
      candidates.push(diverted(kernel, where, { address: ip, mechanism: 'ftrace', target }, evidence))
    }
    if (functions.length === 0) candidates.push(allFunctions(where, row.address, target))
    if (functions.length > NAMED) candidates.push(allFunctions(where, row.address, target, functions.length))
  }
  candidates.push(...(await directHooks(kernel, where, options)))
  return candidates
}

function allFunctions(where: Whereabouts, ops: bigint, target: bigint, count?: number): Candidate {
  const which = count === undefined ? 'every traced function' : `${count} functions`
  return {
    hit: {
      id: `diverted:ftrace:${ops.toString(16)}`,
      kind: 'diverted-function',
      title: `ftrace calls ${where.name(target)} for ${which}`,
      severity: 'critical',
      evidence: where.evidence(target, { ops, mechanism: 'ftrace', ...(count ? { functions: count } : {}) }),
    },
    identity: `ftrace:${ops}:${target}`,
    looks: LOOKS,
  }
}

/** Functions with a trampoline of their own (register_ftrace_direct; BPF fentry programs). */
async function directHooks(
  kernel: Kernel,
  where: Whereabouts,
  options: { signal?: AbortSignal },
): Promise<Candidate[]> {
  const pointer = kernel.trySymbol('direct_functions')
  if (pointer === undefined) return []
  const what = 'the table of functions that ftrace calls directly'
  const hash = await kernel.pointer(pointer, options, what)
  if (hash === 0n) return []
  const bits = await kernel.pointer(hash + BigInt(kernel.offset('ftrace_hash.size_bits')), options, what)
  const buckets = await kernel.pointer(hash + BigInt(kernel.offset('ftrace_hash.buckets')), options, what)
  if (bits > MAX_HASH_BITS) kernel.broken.note({ what }, hash, `says that it has 2^${bits} buckets`)
  return (await filtered(kernel, bits, buckets, options))
    .filter(({ direct }) => direct !== 0n && !where.isKnown(direct))
    .map(({ ip, direct }) =>
      // A BPF trampoline is in the books a moment after it is in use, and out of them a moment before it is not.
      diverted(kernel, where, { address: ip, mechanism: 'ftrace direct call', target: direct, looks: 8 }),
    )
}

async function filtered(
  kernel: Kernel,
  bits: bigint,
  buckets: bigint,
  options: { signal?: AbortSignal },
): Promise<{ ip: bigint; direct: bigint }[]> {
  if (bits > MAX_HASH_BITS || buckets === 0n) return []
  const rows = await walkOne(
    kernel,
    {
      kind: 'hash',
      space: kernel.space,
      head: buckets,
      count: 1 << Number(bits),
      node: kernel.offset('ftrace_func_entry.hlist'),
      columns: ['ip', 'direct']
        .filter((field) => kernel.has(`ftrace_func_entry.${field}`))
        .map((field) => ({ path: [kernel.offset(`ftrace_func_entry.${field}`)], size: 8 })),
      limit: LIMIT,
    },
    options,
    'a hash of traced functions',
  )
  return rows.map(({ values: [ip, direct] }) => ({ ip: ip ?? 0n, direct: direct ?? 0n }))
}

/** Addresses that carry a kprobe, and the handlers of probes that are in nobody's code. */
export async function kprobeHooks(
  kernel: Kernel,
  where: Whereabouts,
  options: { readonly signal?: AbortSignal },
): Promise<{ readonly probed: ReadonlySet<bigint>; readonly candidates: Candidate[] }> {
  const handlers: Column[] = ['pre_handler', 'post_handler'].map((field) => ({
    path: [kernel.offset(`kprobe.${field}`)],
    size: 8,
  }))
  const address: Column = { path: [kernel.offset('kprobe.addr')], size: 8 }
  const returns: Column[] = ['handler', 'entry_handler'].map((field) => ({
    path: [kernel.offset(`kretprobe.${field}`) - kernel.offset('kretprobe.kp')],
    size: 8,
  }))
  const node = kernel.offset('kprobe.list')
  const columns = [address, ...handlers, ...returns]
  const probes = await walkOne(
    kernel,
    {
      kind: 'hash',
      space: kernel.space,
      head: kernel.symbol('kprobe_table'),
      count: KPROBE_BUCKETS,
      node: kernel.offset('kprobe.hlist'),
      columns,
      limit: LIMIT,
    },
    options,
    'the table of kprobes',
  )
  const aggregate = kernel.trySymbol('aggr_pre_handler')
  const kretprobe = kernel.trySymbol('pre_handler_kretprobe')
  const all = [...probes]
  // Several probes on one address hang below one that runs them all.
  const parents = probes.filter((probe) => probe.values[1] === aggregate)
  if (parents.length > 0) {
    if (parents.length > PARENTS) {
      kernel.broken.note(
        { what: 'the table of kprobes' },
        kernel.symbol('kprobe_table'),
        `has ${parents.length} shared probes`,
      )
    }
    const children = await kernel.walk(
      parents.slice(0, PARENTS).map((parent) => ({
        kind: 'list',
        space: kernel.space,
        head: parent.address + BigInt(node),
        node,
        columns,
        limit: 1024,
      })),
      options,
      () => ({ what: 'a list of kprobes of one address', churns: true }),
    )
    for (const result of children) all.push(...rows(result))
  }
  const candidates: Candidate[] = []
  for (const probe of all) {
    const [at, pre, post, handler, entry] = probe.values as [bigint, bigint, bigint, bigint, bigint]
    const isReturn = pre !== 0n && pre === kretprobe
    const target = [pre, post, ...(isReturn ? [handler, entry] : [])].find((a) => a !== 0n && !where.isKnown(a))
    if (target === undefined || at === 0n) continue
    candidates.push(diverted(kernel, where, { address: at, mechanism: 'kprobe', target }, { kprobe: probe.address }))
  }
  return { probed: new Set(all.map((probe) => probe.values[0] as bigint)), candidates }
}

interface Row {
  readonly address: bigint
  readonly values: readonly bigint[]
  readonly ok: readonly boolean[]
}

/** A chain of a few structs that point to each other at `next`; a pointer at `head` leads to the first. */
async function chain(
  kernel: Kernel,
  head: bigint,
  next: number,
  columns: readonly Column[],
  options: { signal?: AbortSignal },
  what: string,
): Promise<Row[]> {
  const found: Row[] = []
  const seen = new Set<bigint>()
  for (let link = head; ; ) {
    if (found.length >= CHAIN_LIMIT) {
      kernel.broken.note({ what }, head, `has more than ${CHAIN_LIMIT} elements`)
      break
    }
    const [row] = await walkOne(
      kernel,
      {
        kind: 'array',
        space: kernel.space,
        head: link,
        count: 1,
        stride: 8,
        pointers: true,
        columns: [...columns, { path: [next], size: 8 }],
        limit: 1,
      },
      options,
      what,
    )
    if (row === undefined) break
    if (seen.has(row.address)) {
      kernel.broken.note({ what }, head, `returns into itself after ${found.length} elements`)
      break
    }
    seen.add(row.address)
    found.push(row)
    link = row.address + BigInt(next)
  }
  return found
}

async function walkOne(
  kernel: Kernel,
  plan: WalkPlan,
  options: { signal?: AbortSignal },
  what: string,
): Promise<Row[]> {
  const [result] = await kernel.walk([plan], options, () => ({ what }))
  return rows(result as WalkResult)
}

/** Rows of a walk all of whose columns are 8 bytes. */
function rows(result: WalkResult): Row[] {
  const views = result.columns.map((bytes) => view(bytes))
  return Array.from({ length: result.rows }, (_, row) => ({
    address: result.addresses[row] as bigint,
    values: views.map((view) => view.getBigUint64(8 * row, true)),
    ok: views.map((_, column) => result.cells[row * views.length + column] === 0),
  }))
}
