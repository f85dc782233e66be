import { createHash } from 'node:crypto'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import {
  type CallOptions,
  CellState,
  type DigestRequest,
  type DigestResult,
  type Fault,
  type GuestMemory,
  LIMITS,
  type MemoryReaderSync,
  type PagesRequest,
  type PagesResult,
  type ReadRequest,
  type ReadResult,
  type SearchRequest,
  type SearchResult,
  type WalkPlan,
  type WalkResult,
  type WriteRequest,
  type WriteResult,
} from '../vmi/memory.js'
import { checkInteger, checkLimit, checkPlan, checkRange, checkReads, invalid, splitSpace } from './memory/checks.js'
import { PageWalker } from './memory/paging.js'
import { findMatches } from './memory/search.js'
import { iterate, type PointerReader } from './memory/structures.js'

export interface BufferMemoryOptions {
  /** Answers whether the VM is paused now: what is read meanwhile is marked consistent. Never paused by default. */
  readonly paused?: () => boolean
  /** Called before each call, as long as the VM is not paused: what the guest does in the meantime. */
  readonly meanwhile?: () => void
  /** Leaves out `write`, as a source opened for reading does. */
  readonly readOnly?: boolean
  /** Ends the memory: later calls throw its reason, or ERR_CLOUDAPP_CLOSED. */
  readonly closed?: AbortSignal
}

const MASK = (1n << 64n) - 1n
const PAGE = 4096

/**
 * A guest's physical RAM in a buffer, with no native code: the whole {@link GuestMemory} in TypeScript. The offset in the
 * buffer is the physical address. The buffer stays the caller's: what is written to it is seen at once.
 *
 * @example
 * ```ts run
 * import { BufferMemory } from '@cloudapp/sdk/testing'
 * import { PHYSICAL } from '@cloudapp/sdk/vmi'
 *
 * const ram = new Uint8Array(8192)
 * ram[4097] = 42
 * const memory = new BufferMemory(ram)
 * const [result] = await memory.read([{ space: PHYSICAL, at: 4096n, length: 2 }])
 * assert.deepEqual([...result.bytes], [0, 42])
 * ```
 */
export class BufferMemory implements GuestMemory {
  readonly end: bigint
  readonly sync: MemoryReaderSync
  /** Absent with `readOnly`. */
  readonly write?: (requests: readonly WriteRequest[], options?: CallOptions) => Promise<WriteResult[]>
  readonly #ram: Uint8Array
  readonly #view: DataView
  readonly #walker: PageWalker
  readonly #options: BufferMemoryOptions

  constructor(ram: Uint8Array, options: BufferMemoryOptions = {}) {
    checkOptions('BufferMemory', options, ['paused', 'meanwhile', 'readOnly', 'closed'])
    this.#ram = ram
    this.#view = new DataView(ram.buffer, ram.byteOffset, ram.byteLength)
    this.#walker = new PageWalker(ram)
    this.#options = options
    this.end = BigInt(ram.byteLength)
    this.sync = {
      read: (requests) => {
        this.#begin()
        return this.#read(requests)
      },
      walk: (plans) => {
        this.#begin()
        return this.#walk(plans)
      },
    }
    if (options.readOnly !== true) {
      this.write = async (requests, call) => {
        this.#begin(call)
        return this.#write(requests)
      }
    }
  }

  async read(requests: readonly ReadRequest[], options?: CallOptions): Promise<ReadResult[]> {
    this.#begin(options)
    return this.#read(requests)
  }

  async walk(plans: readonly WalkPlan[], options?: CallOptions): Promise<WalkResult[]> {
    this.#begin(options)
    return this.#walk(plans)
  }

  async pages(request: PagesRequest, options?: CallOptions): Promise<PagesResult> {
    this.#begin(options)
    checkRange(request.start, request.end)
    checkInteger('limit', request.limit, 1)
    checkLimit('pagesRuns', request.limit)
    const { root, levels } = splitSpace(request.space)
    if (levels === 0) throw invalid('physical memory has no page tables to enumerate')
    const want = request.want ?? 0
    if (!Number.isInteger(want) || (want & ~7) !== 0) throw invalid('want has bits that are no PageFlags')
    const runs: { virtual: bigint; physical: number; size: bigint; flags: number }[] = []
    const next = this.#walker.mappings(root, levels, request.start, request.end, (m) => {
      if ((m.flags & want) !== want) return true
      const last = runs.at(-1)
      if (
        last !== undefined &&
        last.flags === m.flags &&
        last.virtual + last.size === m.virtual &&
        last.physical + Number(last.size) === m.physical
      ) {
        last.size += BigInt(m.size)
        return true
      }
      if (runs.length === request.limit) return false
      runs.push({ virtual: m.virtual, physical: m.physical, size: BigInt(m.size), flags: m.flags })
      return true
    })
    return {
      runs: runs.length,
      virtual: BigUint64Array.from(runs, (r) => r.virtual),
      physical: BigUint64Array.from(runs, (r) => BigInt(r.physical)),
      sizes: BigUint64Array.from(runs, (r) => r.size),
      flags: Uint8Array.from(runs, (r) => r.flags),
      end: next === undefined ? 'complete' : 'limit',
      next: next ?? request.end,
      consistent: this.#consistent(),
    }
  }

  async search(request: SearchRequest, options?: CallOptions): Promise<SearchResult> {
    this.#begin(options)
    return { ...findMatches(this.#ram, this.#walker, request), consistent: this.#consistent() }
  }

  async digest(request: DigestRequest, options?: CallOptions): Promise<DigestResult> {
    this.#begin(options)
    checkRange(request.start, request.end)
    if (request.start % 4096n !== 0n || request.end % 4096n !== 0n) {
      throw invalid('digest takes whole pages: start and end must be multiples of 4096')
    }
    const pages = Number((request.end - request.start) / 4096n)
    checkLimit('digestPages', pages)
    const { root, levels } = splitSpace(request.space)
    const digests = new Uint8Array(pages * 32)
    const present = new Uint8Array(pages)
    for (let i = 0; i < pages; i++) {
      if (!this.#translate(root, levels, request.start + BigInt(i * PAGE))) continue
      const page = this.#ram.subarray(this.#walker.physical, this.#walker.physical + PAGE)
      if (page.byteLength < PAGE) continue
      digests.set(createHash('sha256').update(page).digest(), i * 32)
      present[i] = 1
    }
    return { pages, digests, present, consistent: this.#consistent() }
  }

  #read(requests: readonly ReadRequest[]): ReadResult[] {
    checkReads(requests)
    for (const { space } of requests) splitSpace(space)
    return requests.map(({ space, at, length }) => {
      const { root, levels } = splitSpace(space)
      const count = typeof at === 'bigint' ? 1 : at.length
      const bytes = new Uint8Array(count * length)
      const faults: (Fault & { index: number })[] = []
      for (let index = 0; index < count; index++) {
        const address = typeof at === 'bigint' ? at : (at[index] as bigint)
        const fault = this.#copy(root, levels, address, bytes, index * length, length)
        if (fault !== undefined) faults.push({ ...fault, index })
      }
      return { bytes, faults, consistent: this.#consistent() }
    })
  }

  /** Copies out what can be read and returns the first fault. */
  #copy(root: number, levels: number, at: bigint, into: Uint8Array, to: number, length: number): Fault | undefined {
    let first: Fault | undefined
    for (let done = 0; done < length; ) {
      const address = (at + BigInt(done)) & MASK
      let step = Math.min(length - done, PAGE - Number(address & 0xfffn))
      if (this.#translate(root, levels, address)) {
        const from = this.#walker.physical
        step = Math.min(length - done, this.#walker.left)
        const there = Math.min(step, this.#ram.byteLength - from)
        into.set(this.#ram.subarray(from, from + there), to + done)
        if (there < step) {
          first ??= { reason: 'outside-ram', address: (address + BigInt(there)) & MASK, level: 0, entry: 0n }
        }
      } else {
        first ??= this.#walker.fault(address)
      }
      done += step
    }
    return first
  }

  #write(requests: readonly WriteRequest[]): WriteResult[] {
    checkLimit('batch', requests.length)
    for (const { space, bytes } of requests) {
      splitSpace(space)
      checkLimit('readLength', bytes.byteLength)
    }
    return requests.map(({ space, at, bytes }) => {
      const { root, levels } = splitSpace(space)
      for (let written = 0; written < bytes.byteLength; ) {
        const address = (at + BigInt(written)) & MASK
        if (!this.#translate(root, levels, address)) return { written, fault: this.#walker.fault(address) }
        const to = this.#walker.physical
        const step = Math.min(bytes.byteLength - written, this.#walker.left, this.#ram.byteLength - to)
        this.#ram.set(bytes.subarray(written, written + step), to)
        written += step
      }
      return { written: bytes.byteLength }
    })
  }

  #walk(plans: readonly WalkPlan[]): WalkResult[] {
    checkLimit('batch', plans.length)
    const rows = plans.map((plan) => {
      splitSpace(plan.space)
      return checkPlan(plan)
    })
    let total = 0
    return plans.map((plan, index) => {
      const { root, levels } = splitSpace(plan.space)
      const memory = this.#pointers(root, levels)
      const rowBytes = rows[index] as number
      const elements: bigint[] = []
      const ended = iterate(plan, memory, (element) => {
        if (elements.length >= plan.limit || total + rowBytes > LIMITS.resultBytes) return false
        total += rowBytes
        elements.push(element)
        return true
      })
      const cells = new Uint8Array(elements.length * plan.columns.length)
      const columns = plan.columns.map(({ path, size }, c) => {
        const bytes = new Uint8Array(elements.length * size)
        for (let row = 0; row < elements.length; row++) {
          const state = this.#cell(root, levels, memory, elements[row] as bigint, path, bytes, row * size, size)
          cells[row * plan.columns.length + c] = state
        }
        return bytes
      })
      const addresses = BigUint64Array.from(elements)
      return { rows: elements.length, addresses, columns, cells, ...ended, consistent: this.#consistent() }
    })
  }

  #cell(
    root: number,
    levels: number,
    memory: PointerReader,
    element: bigint,
    path: readonly number[],
    into: Uint8Array,
    to: number,
    size: number,
  ): number {
    let at = element
    for (const offset of path.slice(0, -1)) {
      const next = memory.pointer((at + BigInt(offset)) & MASK)
      if (next === undefined) return CellState.Fault
      if (next === 0n) return CellState.Null
      at = next
    }
    const field = (at + BigInt(path.at(-1) as number)) & MASK
    if (this.#copy(root, levels, field, into, to, size) === undefined) return CellState.Ok
    into.fill(0, to, to + size)
    return CellState.Fault
  }

  #pointers(root: number, levels: number): PointerReader {
    const scratch = new Uint8Array(8)
    const scratchView = new DataView(scratch.buffer)
    let last: Fault | undefined
    return {
      pointer: (at) => {
        if (
          this.#translate(root, levels, at) &&
          this.#walker.left >= 8 &&
          this.#walker.physical + 8 <= this.#ram.byteLength
        ) {
          return this.#view.getBigUint64(this.#walker.physical, true)
        }
        last = this.#copy(root, levels, at, scratch, 0, 8)
        return last === undefined ? scratchView.getBigUint64(0, true) : undefined
      },
      u8: (at) => {
        if (this.#translate(root, levels, at)) return this.#ram[this.#walker.physical]
        last = this.#walker.fault(at)
        return undefined
      },
      fault: () => last as Fault,
    }
  }

  #translate(root: number, levels: number, at: bigint): boolean {
    const walker = this.#walker
    if (levels !== 0) return walker.translate(root, levels, at)
    if (at < this.end) {
      walker.physical = Number(at)
      walker.left = Math.min(this.#ram.byteLength - walker.physical, 0x1000_0000)
      return true
    }
    walker.reason = 'outside-ram'
    walker.level = 0
    walker.entry = 0n
    return false
  }

  #consistent(): boolean {
    return this.#options.paused?.() ?? false
  }

  #begin(options?: CallOptions): void {
    checkOptions('memory call', options, ['signal'])
    if (options?.signal?.aborted === true) {
      throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'the call was aborted', { cause: options.signal.reason })
    }
    const closed = this.#options.closed
    if (closed?.aborted === true) {
      if (CloudAppError.is(closed.reason)) throw closed.reason
      throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the memory is closed', { cause: closed.reason })
    }
    if (!this.#consistent()) this.#options.meanwhile?.()
  }
}
