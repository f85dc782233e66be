/** What a mapping allows. */
export interface Rights {
  readonly write: boolean
  readonly execute: boolean
  readonly user?: boolean
}

// Intel SDM vol. 3A, 4.5.
const PRESENT = 1n
const WRITE = 2n
const USER = 4n
const ACCESSED_DIRTY = 0x60n
const LARGE = 0x80n
const GLOBAL = 0x100n
const NO_EXECUTE = 1n << 63n
const ADDRESS = 0x000f_ffff_ffff_f000n

/** Builds x86-64 page tables in RAM. */
export class PageTables {
  readonly #view: DataView

  constructor(
    readonly ram: Uint8Array,
    /** Physical address of the root table. */
    readonly root: number,
    readonly levels: 4 | 5,
    readonly allocate: () => number,
  ) {
    this.#view = new DataView(ram.buffer, ram.byteOffset, ram.byteLength)
  }

  /** Maps `size` bytes at `va` to `physical` in pages of `page` bytes (4 KiB, 2 MiB, 1 GiB). */
  map(va: bigint, physical: number, size: number, page: number, rights: Rights, root = this.root): void {
    const leaf = page === 0x4000_0000 ? 3 : page === 0x20_0000 ? 2 : 1
    let flags = PRESENT | ACCESSED_DIRTY
    if (rights.write) flags |= WRITE
    if (!rights.execute) flags |= NO_EXECUTE
    flags |= rights.user === true ? USER : GLOBAL
    if (leaf > 1) flags |= LARGE
    for (let done = 0; done < size; done += page) {
      const at = this.entryAddress(va + BigInt(done), leaf, root, true, rights.user === true) as number
      this.#view.setBigUint64(at, BigInt(physical + done) | flags, true)
    }
  }

  /**
   * Physical address of the entry of `va` at `level`. With `create`, tables on the way are made; without, undefined
   * where one is missing or a large page maps the address.
   */
  entryAddress(va: bigint, level: number, root = this.root, create = false, user = false): number | undefined {
    let table = root
    for (let at = this.levels as number; at > level; at--) {
      const slot = table + this.#index(va, at) * 8
      let entry = this.#view.getBigUint64(slot, true)
      if ((entry & PRESENT) === 0n) {
        if (!create) return undefined
        entry = BigInt(this.allocate()) | PRESENT | WRITE | ACCESSED_DIRTY | (user ? USER : 0n)
        this.#view.setBigUint64(slot, entry, true)
      } else if ((entry & LARGE) !== 0n) {
        return undefined
      }
      table = Number(entry & ADDRESS)
    }
    return table + this.#index(va, level) * 8
  }

  /** Physical address of the leaf entry that maps `va`, with its level; undefined where nothing does. */
  leaf(va: bigint, root = this.root): { at: number; level: number } | undefined {
    for (let level = 1; level <= 3; level++) {
      const at = this.entryAddress(va, level, root)
      if (at !== undefined && (this.#view.getBigUint64(at, true) & PRESENT) !== 0n) return { at, level }
    }
    return undefined
  }

  entry(at: number): bigint {
    return this.#view.getBigUint64(at, true)
  }

  setEntry(at: number, value: bigint): void {
    this.#view.setBigUint64(at, value, true)
  }

  /** A root for a process: the kernel's half is shared with this one's root. */
  fork(): number {
    const root = this.allocate()
    this.ram.copyWithin(root + 2048, this.root + 2048, this.root + 4096)
    return root
  }

  #index(va: bigint, level: number): number {
    return Number((va >> BigInt(12 + 9 * (level - 1))) & 511n)
  }
}
