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

/** Where a module keeps its symbols. */
interface ModuleTables {
  readonly module: Module
  readonly symtab: bigint
  readonly count: number
  readonly strtab: bigint
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
/** KSYM_NAME_LEN: include/linux/kallsyms.h, since 6.1. */
const MAX_NAME = 512
/** Of all modules together: symbols, and bytes of names. Modules past that are taken without theirs. */
const MAX_ALL_SYMBOLS = 1_000_000
const MAX_ALL_STRINGS = 64 * 1024 * 1024
const READ_AT_ONCE = 16 * 1024 * 1024

/**
 * A snapshot of what lies where: kernel symbols, the listed modules, and their own symbols (which stand in guest memory
 * and are read with the snapshot; a module with more than 65,536 is taken without).
 */
export class Resolver {
  readonly symbols: SymbolTable
  readonly modules: readonly Module[]
  readonly #linux: GuestReader & { readonly profile: KernelProfile }
  readonly #ranges: { start: bigint; end: bigint; module: Module }[]
  readonly #names = new Map<Module, ModuleNames>()
  #room = MAX_ALL_STRINGS

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

  /** Three crossings for the modules of a group: where their tables are, the symbols, the strings. */
  async #readNames(): Promise<void> {
    const { profile } = this.#linux
    if (!profile.has('mod_kallsyms.symtab')) return
    const listed = this.modules.filter((module) => module.kallsyms !== 0n)
    if (listed.length === 0) return
    let room = MAX_ALL_SYMBOLS
    const tables = (await this.#tables(listed)).filter(({ count }) => {
      if (count === 0 || count > Math.min(MAX_SYMBOLS, room)) return false
      room -= count
      return true
    })
    for (const group of grouped(tables, ({ count }) => count * SYM_SIZE)) await this.#readGroup(group)
  }

  /** Reads each module's `struct mod_kallsyms`. */
  async #tables(modules: readonly Module[]): Promise<ModuleTables[]> {
    const { profile, space } = this.#linux
    const symtabAt = profile.offset('mod_kallsyms.symtab')
    const countAt = profile.offset('mod_kallsyms.num_symtab')
    const strtabAt = profile.offset('mod_kallsyms.strtab')
    const length = Math.max(symtabAt, countAt, strtabAt) + 8
    const at = BigUint64Array.from(modules, (module) => module.kallsyms)
    const { bytes, faults } = await this.#linux.readOne({ space, at, length })
    const unreadable = new Set(faults.map((fault) => fault.index))
    const words = view(bytes)
    return modules.flatMap((module, i) => {
      if (unreadable.has(i)) return []
      return {
        module,
        symtab: words.getBigUint64(i * length + symtabAt, true),
        count: words.getUint32(i * length + countAt, true),
        strtab: words.getBigUint64(i * length + strtabAt, true),
      }
    })
  }

  async #readGroup(group: readonly ModuleTables[]): Promise<void> {
    const { memory, space } = this.#linux
    const requests = group.map(({ symtab, count }) => ({ space, at: symtab, length: count * SYM_SIZE }))
    const results = await memory.read(requests)
    const found = group.flatMap((tables, i) => {
      const result = results[i]
      if (result === undefined || result.faults.length > 0) return []
      const { symbols, reach } = parseSymbols(result.bytes, tables.count)
      if (reach > Math.min(MAX_STRINGS, this.#room)) return []
      this.#room -= reach
      return { ...tables, symbols, reach }
    })
    for (const part of grouped(found, ({ reach }) => reach + MAX_NAME)) {
      const texts = await memory.read(
        part.map(({ strtab, reach }) => ({ space, at: strtab, length: reach + MAX_NAME })),
      )
      for (const [i, { module, symbols }] of part.entries()) {
        const text = texts[i]
        // What lies behind the last name may not be mapped: bytes that could not be read are zero.
        if (text !== undefined) this.#names.set(module, { symbols, strings: text.bytes })
      }
    }
  }
}

/** Cuts a list into groups whose sizes together stay below what is read at once. */
function grouped<T>(items: readonly T[], size: (item: T) => number): T[][] {
  const groups: T[][] = []
  let room = 0
  for (const item of items) {
    const bytes = size(item)
    if (bytes > room || groups.length === 0) {
      groups.push([])
      room = READ_AT_ONCE
    }
    room -= bytes
    ;(groups.at(-1) as T[]).push(item)
  }
  return groups
}

/** The defined symbols of an Elf64_Sym table in address order, and the largest place of a name in the strings. */
function parseSymbols(bytes: Uint8Array, count: number): { symbols: ModuleSymbol[]; reach: number } {
  const entries = view(bytes)
  const symbols: ModuleSymbol[] = []
  let reach = 0
  for (let i = 0; i < count; i++) {
    const name = entries.getUint32(i * SYM_SIZE, true)
    if (name === 0 || entries.getUint16(i * SYM_SIZE + 6, true) === SHN_UNDEF) continue
    reach = Math.max(reach, name)
    symbols.push({ address: entries.getBigUint64(i * SYM_SIZE + 8, true), name })
  }
  symbols.sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0))
  return { symbols, reach }
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
  return decodeText(
    strings.subarray(at, end < 0 ? Math.min(strings.length, at + MAX_NAME) : Math.min(end, at + MAX_NAME)),
  )
}
