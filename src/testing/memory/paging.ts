import { type Fault, type FaultReason, PageFlags } from '../../vmi/memory.js'

// Intel SDM vol. 3A, 4.5: bits of a paging-structure entry.
const PRESENT = 0x1
const WRITABLE = 0x2
const USER = 0x4
const PAGE_SIZE_BIT = 0x80
const NO_EXECUTE_HIGH = 0x8000_0000
const ADDRESS_HIGH = 0x000f_ffff
const TWO_32 = 2 ** 32

/** Tables {@link PageWalker.mappings} looks at in one call. */
export const TABLE_BUDGET = 65_536

/** One mapped page of any size, cut to what was asked for. */
export interface Mapping {
  readonly virtual: bigint
  readonly physical: number
  readonly size: number
  readonly flags: number
}

interface Scan {
  readonly levels: number
  readonly start: bigint
  readonly end: bigint
  readonly visit: (mapping: Mapping) => boolean
  budget: number
  next: bigint
}

/**
 * Walks x86-64 page tables in a buffer of physical RAM. The result of {@link PageWalker.translate} lies in the fields,
 * so that a batch of reads allocates nothing for an address that translates.
 */
export class PageWalker {
  readonly #view: DataView
  /** Physical address of the last translated byte. */
  physical = 0
  /** Bytes from {@link physical} to the end of its page. */
  left = 0
  flags = 0
  reason: FaultReason = 'not-present'
  level = 0
  entry = 0n

  constructor(readonly ram: Uint8Array) {
    this.#view = new DataView(ram.buffer, ram.byteOffset, ram.byteLength)
  }

  /** Translates `va` through the tables at `root`; false leaves the fault in `reason`, `level` and `entry`. */
  translate(root: number, levels: number, va: bigint): boolean {
    const low = Number(va & 0xffff_ffffn)
    const high = Number((va >> 32n) & 0xffff_ffffn)
    const sign = levels === 5 ? high >>> 24 : high >>> 15
    if (sign !== 0 && sign !== (levels === 5 ? 0xff : 0x1ffff)) return this.#fault('non-canonical', levels, 0n)
    let table = root
    let allowed = PageFlags.Write | PageFlags.User | PageFlags.Execute
    let parent = 0n
    for (let level = levels; level >= 1; level--) {
      const at = table + indexOf(low, high, level) * 8
      if (at + 8 > this.ram.byteLength) return this.#fault('outside-ram', level, parent)
      const e0 = this.#view.getUint32(at, true)
      const e1 = this.#view.getUint32(at + 4, true)
      if ((e0 & PRESENT) === 0) return this.#fault('not-present', level, this.#view.getBigUint64(at, true))
      if ((e0 & WRITABLE) === 0) allowed &= ~PageFlags.Write
      if ((e0 & USER) === 0) allowed &= ~PageFlags.User
      if ((e1 & NO_EXECUTE_HIGH) !== 0) allowed &= ~PageFlags.Execute
      const leaf = level === 1 || (e0 & PAGE_SIZE_BIT) !== 0
      if (leaf && (level > 3 || reservedBits(e0, level) !== 0)) {
        return this.#fault('reserved-bit', level, this.#view.getBigUint64(at, true))
      }
      const base = addressOf(e0, e1)
      if (!leaf) {
        table = base
        parent = this.#view.getBigUint64(at, true)
        continue
      }
      const size = pageSize(level)
      const offset = level === 3 ? low & 0x3fff_ffff : level === 2 ? low & 0x1f_ffff : low & 0xfff
      this.physical = base - (base % size) + offset
      this.left = size - offset
      this.flags = allowed
      if (this.physical >= this.ram.byteLength) {
        return this.#fault('outside-ram', 0, this.#view.getBigUint64(at, true))
      }
      return true
    }
    return this.#fault('not-present', 0, 0n)
  }

  /** The fault of the last failed {@link translate}. */
  fault(address: bigint): Fault {
    return { reason: this.reason, address, level: this.level, entry: this.entry }
  }

  /**
   * Calls `visit` for each leaf mapping of `[start, end)`, in order, until it returns false. Tables outside RAM and
   * malformed entries are holes.
   *
   * @returns where to go on from, or undefined when all was seen. At most {@link TABLE_BUDGET} tables are looked at in
   *   one call: tables that point at each other span 2^57 bytes with a few pages.
   */
  mappings(
    root: number,
    levels: number,
    start: bigint,
    end: bigint,
    visit: (mapping: Mapping) => boolean,
  ): bigint | undefined {
    const scan: Scan = { levels, start, end, visit, budget: TABLE_BUDGET, next: start }
    const all = PageFlags.Write | PageFlags.User | PageFlags.Execute
    return this.#table(scan, root, levels, 0n, all) ? undefined : scan.next
  }

  #table(scan: Scan, table: number, level: number, base: bigint, allowed: number): boolean {
    if (table + 4096 > this.ram.byteLength) return true
    if (--scan.budget < 0) {
      scan.next = base > scan.start ? base : scan.start
      return false
    }
    const shift = BigInt(12 + 9 * (level - 1))
    const signAt = 1n << BigInt(11 + 9 * scan.levels)
    const span = 1n << shift
    for (let i = 0; i < 512; i++) {
      const at = table + i * 8
      const e0 = this.#view.getUint32(at, true)
      if ((e0 & PRESENT) === 0) continue
      let va = base + (BigInt(i) << shift)
      if (level === scan.levels && (va & signAt) !== 0n) va |= (1n << 64n) - (signAt << 1n)
      if (va + span <= scan.start) continue
      if (va >= scan.end) return true
      const e1 = this.#view.getUint32(at + 4, true)
      let flags = allowed
      if ((e0 & WRITABLE) === 0) flags &= ~PageFlags.Write
      if ((e0 & USER) === 0) flags &= ~PageFlags.User
      if ((e1 & NO_EXECUTE_HIGH) !== 0) flags &= ~PageFlags.Execute
      const address = addressOf(e0, e1)
      if (level > 1 && (e0 & PAGE_SIZE_BIT) === 0) {
        if (!this.#table(scan, address, level - 1, va, flags)) return false
        continue
      }
      if (level > 3 || reservedBits(e0, level) !== 0) continue
      const size = pageSize(level)
      const from = va < scan.start ? scan.start : va
      const to = va + span > scan.end ? scan.end : va + span
      const physical = address - (address % size) + Number(from - va)
      if (!scan.visit({ virtual: from, physical, size: Number(to - from), flags })) {
        scan.next = from
        return false
      }
    }
    return true
  }

  #fault(reason: FaultReason, level: number, entry: bigint): false {
    this.reason = reason
    this.level = level
    this.entry = entry
    return false
  }
}

function addressOf(low: number, high: number): number {
  return (high & ADDRESS_HIGH) * TWO_32 + ((low & 0xffff_f000) >>> 0)
}

function pageSize(level: number): number {
  return level === 3 ? 0x4000_0000 : level === 2 ? 0x20_0000 : 0x1000
}

/** Address bits below a large page that must be zero; bit 12 is PAT there (SDM vol. 3A, tables 4-17 and 4-19). */
function reservedBits(low: number, level: number): number {
  return level === 3 ? low & 0x3fff_e000 : level === 2 ? low & 0x1f_e000 : 0
}

function indexOf(low: number, high: number, level: number): number {
  switch (level) {
    case 1:
      return (low >>> 12) & 511
    case 2:
      return (low >>> 21) & 511
    case 3:
      return ((low >>> 30) | (high << 2)) & 511
    case 4:
      return (high >>> 7) & 511
    default:
      return (high >>> 16) & 511
  }
}
