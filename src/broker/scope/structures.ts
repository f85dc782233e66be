import type { Fault, WalkPlan, WalkResult } from '../../vmi/memory.js'
import type { CheckedReader } from './checked-reader.js'

/** How a walk ended. */
export interface StructureEnd {
  readonly end: WalkResult['end']
  readonly fault?: Fault
}

/** Takes an element's address; false once there are enough. */
type Emit = (element: bigint) => boolean

const COMPLETE: StructureEnd = { end: 'complete' }
const LIMIT: StructureEnd = { end: 'limit' }
const CYCLE: StructureEnd = { end: 'cycle' }

/** Anchors and slots read at once. */
const BATCH = 1024

/** A red-black tree of 2^64 nodes is no deeper: twice the logarithm. */
const RB_DEPTH = 128

/** Slots of an xarray looked at: nodes that share their children have more paths than there is time for. */
const XARRAY_SLOTS = 1_048_576

const wrap = (at: bigint) => BigInt.asUintN(64, at)
const faulted = (fault: Fault): StructureEnd => ({ end: 'fault', fault })
const wordAt = (bytes: Uint8Array, index: number) =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).readBigUInt64LE(index * 8)

/** Follows a structure one checked read after the other, and gives `emit` the address of each element. */
export function iterate(plan: WalkPlan, reader: CheckedReader, emit: Emit): Promise<StructureEnd> {
  switch (plan.kind) {
    case 'list':
      return list(plan.head, BigInt(plan.node), reader, emit)
    case 'hlist':
      return hlist(plan.head, BigInt(plan.node), reader, emit)
    case 'hash':
      return hash(plan, reader, emit)
    case 'rbtree':
      return rbtree(plan.head, BigInt(plan.node), reader, emit)
    case 'xarray':
      return xarray(plan, reader, emit)
    case 'array':
      return array(plan, reader, emit)
  }
}

async function list(head: bigint, node: bigint, reader: CheckedReader, emit: Emit): Promise<StructureEnd> {
  const seen = new Set<bigint>()
  let at = await reader.word(head)
  while (typeof at === 'bigint' && at !== head) {
    if (seen.has(at)) return CYCLE
    seen.add(at)
    // A link that can not be read belongs to no element: it is read before the element counts.
    const next: bigint | Fault = await reader.word(at)
    if (typeof next !== 'bigint') return faulted(next)
    if (!emit(wrap(at - node))) return LIMIT
    at = next
  }
  return typeof at === 'bigint' ? COMPLETE : faulted(at)
}

async function hlist(head: bigint, node: bigint, reader: CheckedReader, emit: Emit): Promise<StructureEnd> {
  const first = await reader.word(head)
  return typeof first === 'bigint' ? chain(first, node, reader, emit) : faulted(first)
}

async function chain(first: bigint, node: bigint, reader: CheckedReader, emit: Emit): Promise<StructureEnd> {
  const seen = new Set<bigint>()
  let at = first
  // Bit 0 set: the end of an hlist_nulls (include/linux/list_nulls.h).
  while (at !== 0n && (at & 1n) === 0n) {
    if (seen.has(at)) return CYCLE
    seen.add(at)
    const next = await reader.word(at)
    if (typeof next !== 'bigint') return faulted(next)
    if (!emit(wrap(at - node))) return LIMIT
    at = next
  }
  return COMPLETE
}

async function hash(plan: WalkPlan & { kind: 'hash' }, reader: CheckedReader, emit: Emit): Promise<StructureEnd> {
  return slots(plan.head, 8n, plan.count, reader, (first) => chain(first, BigInt(plan.node), reader, emit))
}

async function array(plan: WalkPlan & { kind: 'array' }, reader: CheckedReader, emit: Emit): Promise<StructureEnd> {
  const stride = BigInt(plan.stride)
  if (plan.pointers === true) {
    return slots(plan.head, stride, plan.count, reader, (at) => (at === 0n || emit(at) ? COMPLETE : LIMIT))
  }
  for (let i = 0; i < plan.count; i++) if (!emit(wrap(plan.head + BigInt(i) * stride))) return LIMIT
  return COMPLETE
}

/** Reads `count` words, `stride` apart, and goes on with each in turn. */
async function slots(
  head: bigint,
  stride: bigint,
  count: number,
  reader: CheckedReader,
  visit: (word: bigint) => StructureEnd | Promise<StructureEnd>,
): Promise<StructureEnd> {
  for (let from = 0; from < count; from += BATCH) {
    const places = Array.from({ length: Math.min(BATCH, count - from) }, (_, i) =>
      wrap(head + BigInt(from + i) * stride),
    )
    const { bytes, faults } = await reader.many(places, 8)
    for (let i = 0; i < places.length; i++) {
      const fault = faults.get(i)
      if (fault !== undefined) return faulted(fault)
      const ended = await visit(wordAt(bytes, i))
      if (ended.end !== 'complete') return ended
    }
  }
  return COMPLETE
}

/** struct rb_node, include/linux/rbtree_types.h: parent and colour, right, left. In order, without recursion. */
async function rbtree(head: bigint, node: bigint, reader: CheckedReader, emit: Emit): Promise<StructureEnd> {
  const seen = new Set<bigint>()
  const stack: { readonly at: bigint; readonly right: bigint }[] = []
  let at = await reader.word(head)
  for (;;) {
    while (typeof at === 'bigint' && at !== 0n) {
      if (seen.has(at) || stack.length >= RB_DEPTH) return CYCLE
      seen.add(at)
      const right: bigint | Fault = await reader.word(wrap(at + 8n))
      if (typeof right !== 'bigint') return faulted(right)
      stack.push({ at, right })
      at = await reader.word(wrap(at + 16n))
    }
    if (typeof at !== 'bigint') return faulted(at)
    const top = stack.pop()
    if (top === undefined) return COMPLETE
    if (!emit(wrap(top.at - node))) return LIMIT
    at = top.right
  }
}

/** include/linux/xarray.h: an entry ending in binary 10 and above 4096 is a node, one ending in 1 a value. */
async function xarray(plan: WalkPlan & { kind: 'xarray' }, reader: CheckedReader, emit: Emit): Promise<StructureEnd> {
  let looked = 0
  const visit = async (entry: bigint, above: number): Promise<StructureEnd> => {
    if ((entry & 3n) === 0n && entry !== 0n) return emit(entry) ? COMPLETE : LIMIT
    if ((entry & 3n) !== 2n || entry <= 4096n) return COMPLETE
    const node = entry - 2n
    const shift = await reader.byte(wrap(node + BigInt(plan.shiftOffset)))
    if (typeof shift !== 'number') return faulted(shift)
    // Each level holds a smaller part of the index: a shift that does not shrink is a loop.
    if (shift >= above || shift > 60) return CYCLE
    looked += plan.slots
    if (looked > XARRAY_SLOTS) return LIMIT
    return slots(wrap(node + BigInt(plan.slotsOffset)), 8n, plan.slots, reader, (child) => visit(child, shift))
  }
  const head = await reader.word(plan.head)
  return typeof head === 'bigint' ? visit(head, 256) : faulted(head)
}
