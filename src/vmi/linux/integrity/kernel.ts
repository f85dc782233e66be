import type { GuestMemory, Space, WalkPlan, WalkResult } from '../../memory.js'
import type { Linux } from '../linux.js'
import type { KernelSymbol, SymbolHit, SymbolTable } from '../symbols.js'
import type { TypeTable } from '../types.js'
import { walkMany } from '../walks.js'
import { type Book, BrokenBooks } from './broken.js'

interface ReadOptions {
  readonly signal?: AbortSignal
}

/** Elements of all structures of one batch. */
const ROWS = 262_144

/**
 * A kernel's symbols and types at hand, for checks that look up many: fetched once, then every look-up is synchronous.
 */
export class Kernel {
  readonly linux: Linux
  readonly memory: GuestMemory
  readonly space: Space
  readonly levels: 4 | 5
  /** `runqueues` of each possible CPU. */
  readonly runQueues: readonly bigint[]
  /** What could not be read to its end. */
  readonly broken = new BrokenBooks()
  readonly #symbols: SymbolTable
  readonly #types: TypeTable
  readonly #prefixes = new Map<string, readonly KernelSymbol[]>()

  private constructor(linux: Linux, symbols: SymbolTable, types: TypeTable, runQueues: readonly bigint[]) {
    this.linux = linux
    this.memory = linux.memory
    this.space = linux.space
    this.levels = linux.profile.boot.levels
    this.runQueues = runQueues
    this.#symbols = symbols
    this.#types = types
  }

  static async open(linux: Linux): Promise<Kernel> {
    const [symbols, types] = await Promise.all([linux.symbols(), linux.types()])
    return new Kernel(linux, symbols, types, await linux.perCpuAll('runqueues'))
  }

  /** @throws ERR_CLOUDAPP_PROFILE naming the symbol if the kernel has none */
  symbol(name: string): bigint {
    return this.#symbols.get(name)
  }

  trySymbol(name: string): bigint | undefined {
    return this.#symbols.find(name)
  }

  symbolAt(address: bigint): SymbolHit | undefined {
    return this.#symbols.at(address)
  }

  /** Address of the first symbol behind `address`. */
  symbolAfter(address: bigint): bigint | undefined {
    return this.#symbols.next(address)
  }

  /** All symbols whose names start with `prefix`; looked for once. */
  symbolsWith(prefix: string): readonly KernelSymbol[] {
    let found = this.#prefixes.get(prefix)
    if (found === undefined) {
      found = [...this.#symbols.startingWith(prefix)]
      this.#prefixes.set(prefix, found)
    }
    return found
  }

  /** @throws ERR_CLOUDAPP_PROFILE naming the part of the path that does not exist */
  offset(path: string): number {
    return this.#types.offset(path)
  }

  sizeOf(path: string): number {
    return this.#types.sizeOf(path)
  }

  has(path: string): boolean {
    return this.#types.has(path)
  }

  /** Walks as one batch, of at most about `total` elements; a walk that does not end well is noted as {@link broken} under its book. */
  async walk(
    plans: readonly WalkPlan[],
    options: ReadOptions,
    book: (index: number) => Book | undefined,
    total = ROWS,
  ): Promise<WalkResult[]> {
    const results = await walkMany(this.memory, plans, total, options)
    results.forEach((result, i) => {
      const known = result.end === 'complete' ? undefined : book(i)
      if (known !== undefined) this.broken.noteEnd(known, (plans[i] as WalkPlan).head, result)
    })
    return results
  }

  /** The pointer at `address`; 0n where it can not be read, which is noted as {@link broken} if it has a name. */
  async pointer(address: bigint, options: ReadOptions, what?: string): Promise<bigint> {
    const [read] = await this.memory.read([{ space: this.space, at: address, length: 8 }], options)
    const [fault] = read?.faults ?? []
    if (fault !== undefined && what !== undefined) {
      this.broken.note({ what }, address, `can not be read (${fault.reason})`)
    }
    return read === undefined ? 0n : new DataView(read.bytes.buffer, read.bytes.byteOffset, 8).getBigUint64(0, true)
  }
}
