import { createHash } from 'node:crypto'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import {
  type CallOptions,
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
import { Access } from './memory/access.js'
import { checkInteger, checkLimit, checkPlan, checkRange, checkReads, invalid, splitSpace } from './memory/checks.js'
import { findMatches } from './memory/search.js'
import { iterate } from './memory/structures.js'

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
  readonly #access: Access
  readonly #options: BufferMemoryOptions

  constructor(ram: Uint8Array, options: BufferMemoryOptions = {}) {
    checkOptions('BufferMemory', options, ['paused', 'meanwhile', 'readOnly', 'closed'])
    this.#ram = ram
    this.#access = new Access(ram)
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
    const next = this.#access.walker.mappings(root, levels, request.start, request.end, (m) => {
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
    return { ...findMatches(this.#ram, this.#access.walker, request), consistent: this.#consistent() }
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
      if (!this.#access.translate(root, levels, request.start + BigInt(i * PAGE))) continue
      const page = this.#ram.subarray(this.#access.walker.physical, this.#access.walker.physical + PAGE)
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
        const fault = this.#access.copy(root, levels, address, bytes, index * length, length)
        if (fault !== undefined) faults.push({ ...fault, index })
      }
      return { bytes, faults, consistent: this.#consistent() }
    })
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
        if (!this.#access.translate(root, levels, address))
          return { written, fault: this.#access.walker.fault(address) }
        const to = this.#access.walker.physical
        const step = Math.min(bytes.byteLength - written, this.#access.walker.left, this.#ram.byteLength - to)
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
      const memory = this.#access.pointers(root, levels)
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
          const state = this.#access.cell(root, levels, memory, elements[row] as bigint, path, bytes, row * size, size)
          cells[row * plan.columns.length + c] = state
        }
        return bytes
      })
      const addresses = BigUint64Array.from(elements)
      return { rows: elements.length, addresses, columns, cells, ...ended, consistent: this.#consistent() }
    })
  }

  #consistent(): boolean {
    return this.#options.paused?.() ?? false
  }

  #begin(options?: CallOptions): void {
    checkOptions('memory call', options, ['signal', 'pace'])
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
