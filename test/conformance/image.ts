import { type Space, virtualSpace } from '../../src/vmi/memory.js'

/** Bits of page-table entries: Intel SDM vol. 3A, tables 4-15 to 4-20. */
export const Bits = {
  Present: 1n << 0n,
  Write: 1n << 1n,
  User: 1n << 2n,
  Large: 1n << 7n,
  NoExecute: 1n << 63n,
} as const

const { Present, Write, User, Large, NoExecute } = Bits
const PAGE = 4096n
const MiB = 1024n * 1024n

/** Physical RAM in a buffer, with what is needed to lay out page tables and structures in it. */
export class ImageBuilder {
  readonly ram: Uint8Array
  readonly #view: DataView
  #next: bigint

  /** Tables are taken from `tablesAt` on. */
  constructor(size: bigint, tablesAt: bigint) {
    this.ram = new Uint8Array(Number(size))
    this.#view = new DataView(this.ram.buffer)
    this.#next = tablesAt
  }

  /** Physical address of a fresh page for a table. */
  table(): bigint {
    const page = this.#next
    this.#next += PAGE
    return page
  }

  u64(pa: bigint, value: bigint): void {
    this.#view.setBigUint64(Number(pa), BigInt.asUintN(64, value), true)
  }

  get(pa: bigint): bigint {
    return this.#view.getBigUint64(Number(pa), true)
  }

  bytes(pa: bigint, bytes: ArrayLike<number>): void {
    this.ram.set(bytes, Number(pa))
  }

  text(pa: bigint, text: string): void {
    this.bytes(pa, Buffer.from(text, 'latin1'))
  }

  /**
   * Puts `entry` for `va` at `level` of the tables below `root`, making the tables above it (writable, user and
   * executable, so that the entry alone decides).
   */
  entry(root: bigint, levels: 4 | 5, level: number, va: bigint, entry: bigint): void {
    let table = root
    for (let at = levels; at > level; at--) {
      const slot = table + index(va, at)
      if ((this.get(slot) & Present) === 0n) this.u64(slot, this.table() | Present | Write | User)
      table = this.get(slot) & 0x000f_ffff_ffff_f000n
    }
    this.u64(table + index(va, level), entry)
  }
}

const index = (va: bigint, level: number) => ((va >> BigInt(12 + 9 * (level - 1))) & 511n) * 8n

/** Virtual addresses the suite uses. */
export const VA = {
  /** 4 KiB pages: the first 2 MiB of RAM, but for the holes below. */
  direct: 0xffff_8880_0000_0000n,
  /** A 2 MiB page: RAM from 2 MiB on. */
  large: 0xffff_8880_0020_0000n,
  /** A 1 GiB page on physical 0; most of it is past the end of RAM. */
  huge: 0xffff_8880_4000_0000n,
  /** Pages that are together here and apart in RAM: 3, 1, 2 of the scattered ones, a hole, and 3 again. */
  scattered: 0xffff_9000_0000_0000n,
  /** One page for each way of permissions: see {@link PERMISSIONS}. */
  permissions: 0x0000_1000_0000_0000n,
  /** A page whose levels above take rights away. */
  narrowed: 0x0000_2000_0000_0000n,
  /** One fault each. */
  noRoot: 0xffff_a000_0000_0000n,
  noLevel3: 0xffff_a080_0000_0000n,
  noLevel2: 0xffff_a100_0000_0000n,
  noLevel1: 0xffff_a180_0000_0000n,
  reservedRoot: 0xffff_a200_0000_0000n,
  reservedLevel3: 0xffff_a280_0000_0000n,
  reservedLevel2: 0xffff_a300_0000_0000n,
  tableOutside: 0xffff_a380_0000_0000n,
  pageOutside: 0xffff_a400_0000_0000n,
  /** All indexes lead to the root slot that points back at the root: the page here is the root table. */
  self4: 0xffff_a4d2_6934_9000n,
  self5: 0xff2c_964b_2592_c000n,
  /** Only in the 5-level space: not canonical with 4. */
  wide: 0xff11_0000_0000_0000n,
} as const

/** Entry bits and the flags they come to, page by page from {@link VA.permissions}. */
export const PERMISSIONS: readonly (readonly [bits: bigint, flags: number])[] = [
  [0n, 4],
  [Write, 5],
  [User, 6],
  [Write | User, 7],
  [NoExecute, 0],
  [Write | User | NoExecute, 3],
]

/** Physical places. */
export const PA = {
  structures: 0x1000n,
  scattered: 0x10_0000n,
  permissions: 0x11_0000n,
  /** Not mapped in {@link VA.direct}. */
  hole: 0x12_0000n,
  patterns: 0x13_0000n,
  long: 0x14_0000n,
  tables: 0x18_0000n,
  large: 2n * MiB,
} as const

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

export interface ConformanceImage {
  readonly ram: Uint8Array
  readonly four: Space
  readonly five: Space
  readonly structures: Structures
}

const XA_NODE = { shift: 0n, slots: 40n, size: 40n + 16n * 8n }

/** Builds the guest image of the memory conformance suite: 4 MiB of RAM. */
export function buildImage(): ConformanceImage {
  const image = new ImageBuilder(4n * MiB, PA.tables)
  const four = image.table()
  const five = image.table()
  for (const [root, levels] of [[four, 4] as const, [five, 5] as const]) mapAll(image, root, levels)
  image.entry(five, 5, 1, VA.wide, PA.structures | Present)

  for (let i = 0; i < 4; i++) image.bytes(PA.scattered + BigInt(i) * PAGE, new Uint8Array(4096).fill(0x41 + i))
  for (let i = 0n; i < 4096n; i += 8n) image.u64(PA.large + i, 0x1a60_0000n + i)
  image.u64(4n * MiB - 8n, 0xfeed_face_cafe_beefn)
  for (const offset of [0n, 0x1000n, 0x2abcn]) image.text(PA.patterns + offset, 'needle-one')
  // Over the border of two pages.
  image.text(PA.patterns + 0x4000n - 5n, 'needle-two')
  // In virtual memory only: the end of scattered page 3 and the beginning of page 1.
  image.text(PA.scattered + 4n * PAGE - 4n, 'spli')
  image.text(PA.scattered + 1n * PAGE, 't-pattern')

  return { ram: image.ram, four: virtualSpace(four, 4), five: virtualSpace(five, 5), structures: structures(image) }
}

function mapAll(image: ImageBuilder, root: bigint, levels: 4 | 5): void {
  const page = (va: bigint, entry: bigint) => image.entry(root, levels, 1, va, entry)
  for (let pa = 0n; pa < 2n * MiB; pa += PAGE) {
    if (pa !== PA.hole) page(VA.direct + pa, pa | Present | Write | NoExecute)
  }
  image.entry(root, levels, 2, VA.large, PA.large | Present | Write | NoExecute | Large)
  image.entry(root, levels, 3, VA.huge, Present | Large)
  for (const [i, from] of [3n, 1n, 2n].entries()) {
    page(VA.scattered + BigInt(i) * PAGE, (PA.scattered + from * PAGE) | Present | NoExecute)
  }
  // Behind the hole, what follows page 2 in RAM.
  page(VA.scattered + 4n * PAGE, (PA.scattered + 3n * PAGE) | Present | NoExecute)
  for (const [i, [bits]] of PERMISSIONS.entries()) {
    const at = BigInt(i) * PAGE
    page(VA.permissions + at, (PA.permissions + at) | Present | bits)
  }
  page(VA.narrowed, PA.permissions | Present | Write | User)
  // A level above that is neither writable, nor for users, nor executable.
  const above = image.table()
  image.entry(root, levels, 2, VA.narrowed, above | Present | NoExecute)
  image.u64(above, PA.permissions | Present | Write | User)

  image.entry(root, levels, 4, VA.noRoot, 0x1234_5000n)
  image.entry(root, levels, 3, VA.noLevel3, 0x1234_5000n)
  image.entry(root, levels, 2, VA.noLevel2, 0x1234_5000n)
  image.entry(root, levels, 1, VA.noLevel1, 0x1234_5000n)
  image.entry(root, levels, 4, VA.reservedRoot, Present | Large)
  image.entry(root, levels, 3, VA.reservedLevel3, Present | Large | (1n << 13n))
  image.entry(root, levels, 2, VA.reservedLevel2, Present | Large | (1n << 20n))
  image.entry(root, levels, 2, VA.tableOutside, 0x7fff_f000n | Present)
  image.entry(root, levels, 1, VA.pageOutside, 0x7fff_f000n | Present)
  image.entry(root, levels, levels, levels === 4 ? VA.self4 : VA.self5, root | Present | Write | User)
}

function structures(image: ImageBuilder): Structures {
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
