import type { Module } from './modules.js'
import type { KernelProfile } from './profile.js'
import { decodeText, type GuestReader, view } from './read.js'
import type { SymbolTable } from './symbols.js'

/** What an address lies in. */
export interface Where {
  /** The symbol at or before it; '' in a module without symbols. */
  readonly name: string
  /** Distance from that symbol, or from the start of the range where there is none. */
  readonly offset: bigint
  /** The module it lies in; absent for the kernel image. */
  readonly module?: string
}

interface ModuleSymbol {
  readonly address: bigint
  readonly name: number
}

interface ModuleNames {
  readonly symbols: readonly ModuleSymbol[]
  readonly strings: Uint8Array
}

/** Elf64_Sym: /usr/include/elf.h. */
const SYM_SIZE = 24
const SHN_UNDEF = 0
/** A module with more symbols than this is listed without them. */
const MAX_SYMBOLS = 65_536
const MAX_STRINGS = 4 * 1024 * 1024

/**
 * A snapshot of what lies where: kernel symbols, the listed modules, and their own symbols (which stand in guest memory
 * and are read when a module is first asked about, at most {@link MAX_SYMBOLS} of each).
 */
export class Resolver {
  readonly symbols: SymbolTable
  readonly modules: readonly Module[]
  readonly #linux: GuestReader & { readonly profile: KernelProfile }
  readonly #ranges: { start: bigint; end: bigint; module: Module }[]
  readonly #names = new Map<Module, ModuleNames>()

  private constructor(
    linux: GuestReader & { readonly profile: KernelProfile },
    symbols: SymbolTable,
    modules: readonly Module[],
  ) {
    this.#linux = linux
    this.symbols = symbols
    this.modules = modules
    this.#ranges = modules
      .flatMap((module) => module.ranges.map(({ start, end }) => ({ start, end, module })))
      .sort((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0))
  }

  /** Takes the snapshot: reads the symbols of every module in few crossings. */
  static async create(
    linux: GuestReader & { readonly profile: KernelProfile },
    symbols: SymbolTable,
    modules: readonly Module[],
  ): Promise<Resolver> {
    const resolver = new Resolver(linux, symbols, modules)
    await resolver.#readNames()
    return resolver
  }

  /** The listed module whose memory holds the address. */
  moduleAt(address: bigint): Module | undefined {
    let low = 0
    let high = this.#ranges.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#ranges[middle] as { start: bigint }).start <= address) low = middle + 1
      else high = middle
    }
    const range = this.#ranges[low - 1]
    return range !== undefined && address < range.end ? range.module : undefined
  }

  /** What lies at the address; undefined if neither the kernel image nor a listed module. */
  at(address: bigint): Where | undefined {
    const { profile } = this.#linux
    const end = profile.trySymbol('_end') ?? profile.symbol('_etext')
    if (address >= profile.boot.textBase && address < end) {
      const hit = this.symbols.at(address)
      return hit && { name: hit.name, offset: hit.offset }
    }
    const module = this.moduleAt(address)
    if (module === undefined) return undefined
    const names = this.#names.get(module)
    const symbol = names && last(names.symbols, address)
    const range = module.ranges.find(({ start, end }) => address >= start && address < end)
    const start = range?.start ?? module.base
    if (names === undefined || symbol === undefined || symbol.address < start)
      return { name: '', offset: address - start, module: module.name }
    return { name: nameAt(names.strings, symbol.name), offset: address - symbol.address, module: module.name }
  }

  async #readNames(): Promise<void> {
    const { profile, memory, space } = this.#linux
    if (!profile.has('mod_kallsyms.symtab')) return
    const fields = (['symtab', 'num_symtab', 'strtab'] as const).map((name) => profile.offset(`mod_kallsyms.${name}`))
    const [symtabAt, countAt, strtabAt] = fields as [number, number, number]
    const length = Math.max(...fields) + 8
    const listed = this.modules.filter((module) => module.kallsyms !== 0n)
    if (listed.length === 0) return
    const at = BigUint64Array.from(listed, (module) => module.kallsyms)
    const heads = await this.#linux.readOne({ space, at, length })
    const unreadable = new Set(heads.faults.map((fault) => fault.index))
    for (const [index, module] of listed.entries()) {
      if (unreadable.has(index)) continue
      const head = view(heads.bytes.subarray(index * length, (index + 1) * length))
      const count = head.getUint32(countAt, true)
      if (count === 0 || count > MAX_SYMBOLS) continue
      const [table] = await memory.read([{ space, at: head.getBigUint64(symtabAt, true), length: count * SYM_SIZE }])
      if (table === undefined || table.faults.length > 0) continue
      const symbols: ModuleSymbol[] = []
      const entries = view(table.bytes)
      let strings = 0
      for (let i = 0; i < count; i++) {
        const name = entries.getUint32(i * SYM_SIZE, true)
        strings = Math.max(strings, name)
        const address = entries.getBigUint64(i * SYM_SIZE + 8, true)
        if (name !== 0 && entries.getUint16(i * SYM_SIZE + 6, true) !== SHN_UNDEF) symbols.push({ address, name })
      }
      if (strings > MAX_STRINGS) continue
      const [text] = await memory.read([{ space, at: head.getBigUint64(strtabAt, true), length: strings + 512 }])
      if (text === undefined) continue
      symbols.sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0))
      this.#names.set(module, { symbols, strings: text.bytes })
    }
  }
}

function last(symbols: readonly ModuleSymbol[], address: bigint): ModuleSymbol | undefined {
  let low = 0
  let high = symbols.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if ((symbols[middle] as ModuleSymbol).address <= address) low = middle + 1
    else high = middle
  }
  return symbols[low - 1]
}

function nameAt(strings: Uint8Array, at: number): string {
  const end = strings.indexOf(0, at)
  return decodeText(strings.subarray(at, end < 0 ? Math.min(strings.length, at + 512) : Math.min(end, at + 512)))
}
