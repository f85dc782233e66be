import type { ImageBuilder } from './image-builder.js'
import { PA, VA } from './image-places.js'

/** What lies where for the walks; all virtual, in {@link VA.direct}. */
export interface Structures {
  /** list_head at offset 16 of each element; value u64 at 0, name (16 bytes) at 32, pointer to a u64 at 48. */
  readonly list: bigint
  readonly elements: readonly bigint[]
  readonly emptyList: bigint
  /** a → b → c → b. */
  readonly cyclicList: bigint
  readonly cyclicElements: readonly bigint[]
  readonly selfList: bigint
  readonly nullList: bigint
  readonly wildList: bigint
  readonly wildAddress: bigint
  /** `longCount` elements, 16 bytes apart, link first. */
  readonly longList: bigint
  readonly longCount: number
  readonly hlist: bigint
  readonly nullsHlist: bigint
  readonly cyclicHlist: bigint
  readonly wildHlist: bigint
  readonly hash: bigint
  readonly hashElements: readonly bigint[]
  /** rb_node at offset 8 of each element; value u64 at 0. */
  readonly rbtree: bigint
  readonly rbElements: readonly bigint[]
  readonly emptyTree: bigint
  readonly leftCycle: bigint
  readonly rightCycle: bigint
  readonly wildTree: bigint
  /** shift u8 at 0, 16 slots at 40. */
  readonly xarray: bigint
  readonly xaElements: readonly bigint[]
  readonly xaSingle: bigint
  readonly xaEmpty: bigint
  readonly xaCycle: bigint
  /** Nodes that all lead to one another below and hold no element: 16^15 paths. */
  readonly xaShared: bigint
  readonly pointers: bigint
}

const XA_NODE = { shift: 0n, slots: 40n, size: 40n + 16n * 8n }

/** Lays every structure out from {@link PA}.structures on. */
export function structures(image: ImageBuilder): Structures {
  let next = PA.structures
  const take = (size: bigint) => {
    const at = next
    next += (size + 15n) & ~15n
    return at
  }
  const va = (pa: bigint) => VA.direct + pa
  const put = (at: bigint, value: bigint) => image.u64(at - VA.direct, value)

  const makeElements = (count: number) =>
    Array.from({ length: count }, (_, i) => {
      const at = take(64n)
      image.u64(at, BigInt(100 + i))
      image.text(at + 32n, `element-${i}`)
      return va(at)
    })
  const newHead = () => va(take(16n))
  /** Links `nodes` in order behind `head`; the last one to `last`. */
  const link = (head: bigint, nodes: readonly bigint[], last: bigint) => {
    for (const [i, node] of [head, ...nodes].entries()) put(node, nodes[i] ?? last)
  }

  const list = newHead()
  const elements = makeElements(5)
  link(
    list,
    elements.map((e) => e + 16n),
    list,
  )
  const value = va(take(8n))
  put(value, 0x7a1een)
  // Element 0 → a good pointer; 1 → null; 2 → a hole; 3, 4 → good.
  for (const [i, e] of elements.entries()) put(e + 48n, i === 1 ? 0n : i === 2 ? va(PA.hole) : value)

  const emptyList = newHead()
  put(emptyList, emptyList)
  const cyclicList = newHead()
  const cyclicElements = makeElements(3)
  const cyclicNodes = cyclicElements.map((e) => e + 16n)
  link(cyclicList, cyclicNodes, cyclicNodes[1] ?? 0n)
  const selfList = newHead()
  const [alone = 0n] = makeElements(1)
  link(selfList, [alone + 16n], alone + 16n)
  const nullList = newHead()
  link(
    nullList,
    makeElements(2).map((e) => e + 16n),
    0n,
  )
  const wildList = newHead()
  const wildAddress = va(PA.hole) + 8n
  link(
    wildList,
    makeElements(2).map((e) => e + 16n),
    wildAddress,
  )

  const longCount = 12_000
  const longList = newHead()
  link(
    longList,
    Array.from({ length: longCount }, (_, i) => va(PA.long) + BigInt(i) * 16n),
    longList,
  )

  const hlist = newHead()
  link(hlist, elementsAgain(makeElements(4)), 0n)
  const nullsHlist = newHead()
  link(nullsHlist, elementsAgain(makeElements(2)), 0x123n)
  const cyclicHlist = newHead()
  const ring = elementsAgain(makeElements(2))
  link(cyclicHlist, ring, ring[0] ?? 0n)
  const wildHlist = newHead()
  link(wildHlist, elementsAgain(makeElements(2)), wildAddress)
  const hash = va(take(64n))
  const hashElements = makeElements(6)
  link(hash, elementsAgain(hashElements.slice(0, 3)), 0n)
  link(hash + 24n, elementsAgain(hashElements.slice(3, 4)), 0n)
  link(hash + 56n, elementsAgain(hashElements.slice(4)), 0n)

  const trees = rbtrees(take, va, put)
  const arrays = xarrays(image, take, va, put, elements)
  const pointers = va(take(5n * 8n))
  for (const [i, e] of [elements[0], 0n, elements[2], va(PA.hole), elements[4]].entries()) {
    put(pointers + BigInt(i) * 8n, e ?? 0n)
  }
  return {
    list,
    elements,
    emptyList,
    cyclicList,
    cyclicElements,
    selfList,
    nullList,
    wildList,
    wildAddress,
    longList,
    longCount,
    hlist,
    nullsHlist,
    cyclicHlist,
    wildHlist,
    hash,
    hashElements,
    ...trees,
    ...arrays,
    pointers,
  }
}

const elementsAgain = (elements: readonly bigint[]) => elements.map((e) => e + 16n)

type Take = (size: bigint) => bigint
type Va = (pa: bigint) => bigint
type Put = (at: bigint, value: bigint) => void

function rbtrees(take: Take, va: Va, put: Put) {
  /** A balanced tree over `nodes`; the address of its root node. */
  const grow = (nodes: readonly bigint[]): bigint => {
    if (nodes.length === 0) return 0n
    const middle = nodes.length >> 1
    const node = (nodes[middle] ?? 0n) + 8n
    put(node + 8n, grow(nodes.slice(middle + 1)))
    put(node + 16n, grow(nodes.slice(0, middle)))
    return node
  }
  const nodes = (count: number) =>
    Array.from({ length: count }, (_, i) => {
      const at = va(take(32n))
      put(at, BigInt(200 + i))
      return at
    })
  const root = (to: bigint) => {
    const at = va(take(8n))
    put(at, to)
    return at
  }
  const rbElements = nodes(11)
  const [left = 0n] = nodes(1)
  put(left + 8n + 16n, left + 8n)
  const [right = 0n] = nodes(1)
  put(right + 8n + 8n, right + 8n)
  const [wild = 0n] = nodes(1)
  put(wild + 8n + 8n, va(PA.hole))
  return {
    rbtree: root(grow(rbElements)),
    rbElements,
    emptyTree: root(0n),
    leftCycle: root(left + 8n),
    rightCycle: root(right + 8n),
    wildTree: root(wild + 8n),
  }
}

/** include/linux/xarray.h: a node's entry has low bits 10, a value's bit 0 is set. */
function xarrays(image: ImageBuilder, take: Take, va: Va, put: Put, elements: readonly bigint[]) {
  const root = (to: bigint) => {
    const at = va(take(8n))
    put(at, to)
    return at
  }
  const node = (shift: number) => {
    const at = take(XA_NODE.size)
    image.bytes(at, [shift])
    return va(at)
  }
  const slot = (at: bigint, i: number, entry: bigint) => put(at + XA_NODE.slots + BigInt(i) * 8n, entry)
  const [e0 = 0n, e1 = 0n, e2 = 0n, e3 = 0n] = elements
  const top = node(4)
  const low = node(0)
  const high = node(0)
  slot(top, 0, low | 2n)
  slot(top, 15, high | 2n)
  slot(low, 0, e0)
  slot(low, 3, e1)
  slot(low, 4, (7n << 1n) | 1n) // a value entry
  slot(low, 5, (256n << 2n) | 2n) // a retry entry
  slot(high, 1, e2)
  slot(high, 15, e3)
  const loop = node(4)
  slot(loop, 0, e0)
  slot(loop, 1, loop | 2n)
  let below = 0n
  for (let shift = 0; shift <= 60; shift += 4) {
    const at = node(shift)
    if (below !== 0n) for (let i = 0; i < 16; i++) slot(at, i, below | 2n)
    below = at
  }
  return {
    xarray: root(top | 2n),
    xaElements: [e0, e1, e2, e3],
    xaSingle: root(e1),
    xaEmpty: root(0n),
    xaCycle: root(loop | 2n),
    xaShared: root(below | 2n),
  }
}
