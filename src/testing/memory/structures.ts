import { type Fault, LIMITS, type WalkPlan } from '../../vmi/memory.js'

/** Reads a pointer; undefined leaves the fault with the reader. */
export interface PointerReader {
  pointer(at: bigint): bigint | undefined
  u8(at: bigint): number | undefined
  fault(): Fault
}

/** How a walk ended. */
export interface WalkEnd {
  readonly end: 'complete' | 'limit' | 'cycle' | 'fault'
  readonly fault?: Fault
}

const COMPLETE: WalkEnd = { end: 'complete' }
const LIMIT: WalkEnd = { end: 'limit' }
const CYCLE: WalkEnd = { end: 'cycle' }
const MASK = (1n << 64n) - 1n

/** Calls `emit` with each element's address until it says the limit is reached (false). */
export function iterate(plan: WalkPlan, memory: PointerReader, emit: (element: bigint) => boolean): WalkEnd {
  switch (plan.kind) {
    case 'list':
      return list(plan.head, BigInt(plan.node), memory, emit)
    case 'hlist':
      return hlist(plan.head, BigInt(plan.node), memory, emit)
    case 'hash':
      for (let i = 0; i < plan.count; i++) {
        const ended = hlist((plan.head + BigInt(i * 8)) & MASK, BigInt(plan.node), memory, emit)
        if (ended.end !== 'complete') return ended
      }
      return COMPLETE
    case 'rbtree':
      return rbtree(plan.head, BigInt(plan.node), memory, emit)
    case 'xarray':
      return xarray(plan, memory, emit)
    case 'array':
      return array(plan, memory, emit)
  }
}

function faulted(memory: PointerReader): WalkEnd {
  return { end: 'fault', fault: memory.fault() }
}

function list(head: bigint, node: bigint, memory: PointerReader, emit: (element: bigint) => boolean): WalkEnd {
  const seen = new Set<bigint>()
  let at = memory.pointer(head)
  while (at !== undefined && at !== head) {
    if (seen.has(at)) return CYCLE
    seen.add(at)
    // A link that can not be read belongs to no element: look before the row is given.
    const next = memory.pointer(at)
    if (next === undefined) break
    if (!emit((at - node) & MASK)) return LIMIT
    at = next
  }
  return at === head ? COMPLETE : faulted(memory)
}

function hlist(head: bigint, node: bigint, memory: PointerReader, emit: (element: bigint) => boolean): WalkEnd {
  const seen = new Set<bigint>()
  let at = memory.pointer(head)
  while (at !== undefined && at !== 0n && (at & 1n) === 0n) {
    if (seen.has(at)) return CYCLE
    seen.add(at)
    const next = memory.pointer(at)
    if (next === undefined) return faulted(memory)
    if (!emit((at - node) & MASK)) return LIMIT
    at = next
  }
  return at === undefined ? faulted(memory) : COMPLETE
}

/** A red-black tree of 2^64 nodes is no deeper (2 * log2). */
const RB_DEPTH = 128

/** include/linux/rbtree_types.h: __rb_parent_color, rb_right, rb_left. */
function rbtree(head: bigint, node: bigint, memory: PointerReader, emit: (element: bigint) => boolean): WalkEnd {
  const seen = new Set<bigint>()
  const stack: { node: bigint; right: bigint }[] = []
  let at = memory.pointer(head)
  for (;;) {
    while (at !== undefined && at !== 0n) {
      if (seen.has(at) || stack.length >= RB_DEPTH) return CYCLE
      const right = memory.pointer((at + 8n) & MASK)
      if (right === undefined) return faulted(memory)
      seen.add(at)
      stack.push({ node: at, right })
      at = memory.pointer((at + 16n) & MASK)
    }
    if (at === undefined) return faulted(memory)
    const top = stack.pop()
    if (top === undefined) return COMPLETE
    if (!emit((top.node - node) & MASK)) return LIMIT
    at = top.right
  }
}

/** include/linux/xarray.h: an entry that ends in binary 10 and is above 4096 is a node; other internal entries are none. */
function xarray(
  plan: WalkPlan & { kind: 'xarray' },
  memory: PointerReader,
  emit: (element: bigint) => boolean,
): WalkEnd {
  let looked = 0
  const visit = (entry: bigint, above: number): WalkEnd => {
    if ((entry & 3n) === 2n && entry > 4096n) {
      const node = entry - 2n
      const shift = memory.u8((node + BigInt(plan.shiftOffset)) & MASK)
      if (shift === undefined) return faulted(memory)
      // Each level holds a smaller part of the index: a shift that does not shrink is a loop.
      if (shift >= above || shift > 60) return CYCLE
      for (let slot = 0; slot < plan.slots; slot++) {
        // Nodes that share their children make more paths than there is time for.
        if (++looked > LIMITS.walkRows) return LIMIT
        const child = memory.pointer((node + BigInt(plan.slotsOffset + slot * 8)) & MASK)
        if (child === undefined) return faulted(memory)
        const ended = visit(child, shift)
        if (ended.end !== 'complete') return ended
      }
      return COMPLETE
    }
    if (entry === 0n || (entry & 3n) === 2n || (entry & 1n) === 1n) return COMPLETE
    return emit(entry) ? COMPLETE : LIMIT
  }
  const head = memory.pointer(plan.head)
  return head === undefined ? faulted(memory) : visit(head, 256)
}

function array(plan: WalkPlan & { kind: 'array' }, memory: PointerReader, emit: (element: bigint) => boolean): WalkEnd {
  for (let i = 0; i < plan.count; i++) {
    const at = (plan.head + BigInt(i) * BigInt(plan.stride)) & MASK
    if (plan.pointers !== true) {
      if (!emit(at)) return LIMIT
      continue
    }
    const pointer = memory.pointer(at)
    if (pointer === undefined) return faulted(memory)
    if (pointer !== 0n && !emit(pointer)) return LIMIT
  }
  return COMPLETE
}
