/** Bits of page-table entries: Intel SDM vol. 3A, tables 4-15 to 4-20. */
export const Bits = {
  Present: 1n << 0n,
  Write: 1n << 1n,
  User: 1n << 2n,
  Large: 1n << 7n,
  NoExecute: 1n << 63n,
} as const

const { Present, Write, User } = Bits
const PAGE = 4096n

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
