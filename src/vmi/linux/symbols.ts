import { CloudAppError } from '../../errors.js'
import { profileError } from './errors.js'
import { hashName, sameName, tableSlots } from './hash.js'

/** One kernel symbol. */
export interface KernelSymbol {
  readonly name: string
  readonly address: bigint
  /** The letter of nm(1) and /proc/kallsyms: `T` text, `D` data, `A` absolute (a per-CPU offset before Linux 6.15), … */
  readonly type: string
}

/** A symbol and the distance of an address from it. */
export interface SymbolHit extends KernelSymbol {
  readonly offset: bigint
}

/** What a symbol section is built from: parallel arrays in address order. Made by the parser, from kallsyms. */
export interface SymbolColumns {
  readonly count: number
  /** Distance of each symbol from `_text`; an absolute symbol's value where `absolute` is 1. */
  readonly offsets: Int32Array
  readonly absolute: Uint8Array
  /** nm letters. */
  readonly letters: Uint8Array
  /** Start of each name in `names`; one more entry than symbols. */
  readonly starts: Uint32Array
  readonly names: Uint8Array
}

const MAGIC = 0x4d595343 // "CSYM"
const HEADER = 32
const ABSOLUTE = 0x80

/** Names the linker script gives to the ends of sections: arch/x86/kernel/vmlinux.lds.S, asm-generic/vmlinux.lds.h. */
const MARKER = /^_{1,2}(?:[se]?(?:text|init\w*|data|rodata)|start_\w+|stop_\w+|end_\w+|\w+_(?:start|end|begin))$/

const align4 = (n: number): number => (n + 3) & ~3

/** Encodes the `symbols` section. Little endian; layout: header, offsets, starts, hash slots, letters, names. */
export function encodeSymbols(columns: SymbolColumns, seed: number): Uint8Array {
  const { count, offsets, starts, names } = columns
  const slots = tableSlots(count)
  const nameBytes = starts[count] as number
  const total = HEADER + 4 * count + 4 * (count + 1) + 4 * slots + align4(count) + nameBytes
  const out = new Uint8Array(total)
  const words = new Uint32Array(out.buffer, 0, (total - (total % 4)) / 4)
  words.set([MAGIC, 1, count, slots, nameBytes, seed >>> 0])
  let at = HEADER
  new Int32Array(out.buffer, at, count).set(offsets.subarray(0, count))
  at += 4 * count
  new Uint32Array(out.buffer, at, count + 1).set(starts.subarray(0, count + 1))
  at += 4 * (count + 1)
  const table = new Uint32Array(out.buffer, at, slots)
  at += 4 * slots
  for (let i = 0; i < count; i++) {
    out[at + i] = (columns.letters[i] as number) | (columns.absolute[i] ? ABSOLUTE : 0)
    let slot = hashName(names, starts[i] as number, starts[i + 1] as number, seed) & (slots - 1)
    while (table[slot] !== 0) slot = (slot + 1) & (slots - 1)
    table[slot] = i + 1
  }
  at += align4(count)
  out.set(names.subarray(0, nameBytes), at)
  return out
}

/**
 * All symbols of a kernel, by name and by address, without decoding them first. Addresses are those of this boot.
 */
export class SymbolTable {
  /** Number of symbols. */
  readonly size: number
  readonly #base: bigint
  readonly #offsets: Int32Array
  readonly #starts: Uint32Array
  readonly #table: Uint32Array
  readonly #letters: Uint8Array
  readonly #names: Buffer
  readonly #seed: number
  /** Index of the first symbol that is not absolute: from there on, offsets ascend. */
  readonly #firstRelative: number

  private constructor(bytes: Uint8Array, base: bigint) {
    const bad = (what: string) => profileError('symbols', `malformed section: ${what}`)
    if (bytes.byteLength < HEADER) throw bad('truncated')
    const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice()
    const header = new Uint32Array(aligned.buffer, aligned.byteOffset, HEADER / 4)
    const [magic, version, count, slots, nameBytes, seed] = header as unknown as number[] as [
      number,
      number,
      number,
      number,
      number,
      number,
    ]
    if (magic !== MAGIC || version !== 1) throw bad('wrong magic or version')
    if (slots !== tableSlots(count)) throw bad('wrong table size')
    if (HEADER + 4 * count + 4 * (count + 1) + 4 * slots + align4(count) + nameBytes !== aligned.byteLength)
      throw bad('wrong length')
    let at = aligned.byteOffset + HEADER
    this.#offsets = new Int32Array(aligned.buffer, at, count)
    at += 4 * count
    this.#starts = new Uint32Array(aligned.buffer, at, count + 1)
    at += 4 * (count + 1)
    this.#table = new Uint32Array(aligned.buffer, at, slots)
    at += 4 * slots
    this.#letters = new Uint8Array(aligned.buffer, at, count)
    at += align4(count)
    this.#names = Buffer.from(aligned.buffer, at, nameBytes)
    this.#seed = seed
    this.#base = base
    this.size = count
    let first = 0
    while (first < count && (this.#letters[first] as number) & ABSOLUTE) first++
    this.#firstRelative = first
  }

  /** Opens a `symbols` section; `base` is the address of `_text` in this boot. @throws ERR_CLOUDAPP_PROFILE */
  static open(section: Uint8Array, base: bigint): SymbolTable {
    return new SymbolTable(section, base)
  }

  /** Address of the symbol. Of several with one name, the first in address order. @throws ERR_CLOUDAPP_PROFILE */
  get(name: string): bigint {
    const address = this.find(name)
    if (address === undefined)
      throw profileError(name, `the kernel has no symbol "${name}" (looked in ${this.size} symbols of kallsyms)`)
    return address
  }

  /** Address of the symbol, or undefined. */
  find(name: string): bigint | undefined {
    let lowest = -1
    for (const index of this.#indexes(name)) if (lowest < 0 || index < lowest) lowest = index
    return lowest < 0 ? undefined : this.#address(lowest)
  }

  /** Every symbol of that name (static functions share names), in address order. */
  all(name: string): KernelSymbol[] {
    return [...this.#indexes(name)].sort((a, b) => a - b).map((index) => this.#entry(index))
  }

  /** The symbol an address lies in: the last one at or before it. Undefined before the first and 2 GiB past the last. */
  at(address: bigint): SymbolHit | undefined {
    const wanted = address - this.#base
    if (wanted < -0x8000_0000n || wanted > 0x7fff_ffffn) return undefined
    const offset = Number(wanted)
    let low = this.#firstRelative
    let high = this.size
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#offsets[middle] as number) <= offset) low = middle + 1
      else high = middle
    }
    if (low === this.#firstRelative) return undefined
    let index = low - 1
    // Of several names for one address, the first, as the kernel's own kallsyms_lookup() gives it, but for names that
    // only mark where a section starts or ends.
    const last = index
    while (index > this.#firstRelative && this.#offsets[index - 1] === this.#offsets[index]) index--
    let entry = this.#entry(index)
    for (let other = index + 1; other <= last && MARKER.test(entry.name); other++) entry = this.#entry(other)
    return { ...entry, offset: address - entry.address }
  }

  /** Address of the first symbol after `address`, to bound the one that contains it. */
  next(address: bigint): bigint | undefined {
    const offset = Number(BigInt.asIntN(64, address - this.#base))
    let low = this.#firstRelative
    let high = this.size
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#offsets[middle] as number) <= offset) low = middle + 1
      else high = middle
    }
    return low < this.size ? this.#address(low) : undefined
  }

  /** All symbols in address order, absolute ones first. */
  *[Symbol.iterator](): Generator<KernelSymbol> {
    for (let i = 0; i < this.size; i++) yield this.#entry(i)
  }

  /** Symbols whose name starts with `prefix`, in address order. */
  *startingWith(prefix: string): Generator<KernelSymbol> {
    const wanted = Buffer.from(prefix, 'utf8')
    for (let i = 0; i < this.size; i++) {
      const start = this.#starts[i] as number
      const end = start + wanted.length
      if (end > (this.#starts[i + 1] as number)) continue
      if (sameName(this.#names, start, end, wanted)) yield this.#entry(i)
    }
  }

  *#indexes(name: string): Generator<number> {
    const wanted = Buffer.from(name, 'utf8')
    const mask = this.#table.length - 1
    let slot = hashName(wanted, 0, wanted.length, this.#seed) & mask
    for (let probes = 0; probes <= mask; probes++) {
      const entry = this.#table[slot] as number
      if (entry === 0) return
      const index = entry - 1
      if (index < this.size) {
        const start = this.#starts[index] as number
        const end = this.#starts[index + 1] as number
        if (end <= this.#names.length && sameName(this.#names, start, end, wanted)) yield index
      }
      slot = (slot + 1) & mask
    }
  }

  #address(index: number): bigint {
    const offset = this.#offsets[index] as number
    return (this.#letters[index] as number) & ABSOLUTE ? BigInt(offset >>> 0) : this.#base + BigInt(offset)
  }

  #entry(index: number): KernelSymbol {
    if (index < 0 || index >= this.size)
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `no symbol number ${index}`)
    return {
      name: this.#names.toString('utf8', this.#starts[index] as number, this.#starts[index + 1] as number),
      address: this.#address(index),
      type: String.fromCharCode((this.#letters[index] as number) & ~ABSOLUTE),
    }
  }
}
