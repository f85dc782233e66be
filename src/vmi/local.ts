import { CloudAppError } from '../errors.js'
import { CA_ARMED, CA_KEEP, CA_OPEN_WRITE, type Shim } from '../native/abi.js'
import { checked, loadShim } from '../native/shim.js'
import { checkOptions } from '../options.js'
import { checkAddress, checkLimit, invalid } from './local-check.js'
import { DigestOperation } from './local-digest.js'
import { newWorkspace, type Operation, type Workspace } from './local-operation.js'
import { PagesOperation } from './local-pages.js'
import { ReadOperation } from './local-read.js'
import { SearchOperation } from './local-search.js'
import { WalkOperation } from './local-walk.js'
import { checkWrites, WriteOperation } from './local-write.js'
import {
  type CallOptions,
  type DigestRequest,
  type DigestResult,
  type GuestMemory,
  LIMITS,
  type MemoryReaderSync,
  type MemoryWriter,
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
} from './memory.js'
import { OwnPace } from './pace.js'

/** Where a region of guest-physical memory lies in a RAM file. All in bytes. */
export interface RamRegion {
  readonly address: bigint
  readonly size: bigint
  /** Offset in the file. */
  readonly offset: bigint
}

/** What a source knows about the VM standing still. */
export interface PauseState {
  /** True while no vCPU of the VM runs. */
  paused(): boolean
  /** Changes each time the VM runs on. */
  generation(): number
}

export interface LocalMemoryOptions {
  /** The RAM file. */
  readonly path: string
  /** Where its parts lie in guest-physical memory; without, the whole file lies at 0. They must not overlap. */
  readonly regions?: readonly RamRegion[]
  /** Opens the file for writing too; without, `write` is absent. */
  readonly writable?: boolean
  /** Without, the VM counts as running: no result is consistent. */
  readonly pause?: PauseState
}

/** The same without turns of the event loop between: for who scans a guest that stands still. */
export interface LocalReaderSync extends MemoryReaderSync {
  /** {@link LocalMemory.readInto} */
  readInto(into: Uint8Array, requests: readonly ReadRequest[]): ReadResult[]
}

const OPTIONS = ['path', 'regions', 'writable', 'pause'] as const

/** The budget of a synchronous call: none, so that one crossing is enough and no clock is looked at. */
const UNSLICED = 0xffff_ffff

/**
 * A guest's memory in a file that is mapped here: a running QEMU's RAM backend, or a raw dump.
 *
 * **Freshness.** Guest data is never cached. Of page tables, the last level is read at each access (of a walk, once for
 * each page the fields of an element lie in), and upper levels are kept for one crossing into the native library only (at
 * most a millisecond), so a translation never outlives the call that made it. While the source's {@link PauseState} says
 * that the VM has not run since the last call, upper levels are kept from call to call; {@link LocalMemory.invalidate}
 * drops them for somebody who changes the tables by other means.
 *
 * **Slices.** A call works at most a millisecond at a time and then lets the event loop turn, or as its `pace` says; `sync`
 * does not.
 *
 * Every verb throws `ERR_CLOUDAPP_INVALID_ARGUMENT` or `ERR_CLOUDAPP_LIMIT` on misuse, before any work is done;
 * `ERR_CLOUDAPP_CLOSED` after close, the reason given to revoke after that, `ERR_CLOUDAPP_ABORTED` by its signal,
 * `ERR_CLOUDAPP_SOURCE` when the file is gone. A file cut short while it is mapped gives `source` faults.
 */
export class LocalMemory implements GuestMemory {
  readonly end: bigint
  readonly sync: LocalReaderSync
  /** Present if opened with `writable`. */
  declare readonly write?: MemoryWriter['write']

  readonly #shim: Shim
  readonly #handle: number
  readonly #pause: PauseState | undefined
  readonly #spare: Workspace[] = []
  /** Pause generation in which the cached upper levels were read. */
  #cachedIn: number | undefined
  #closed = false
  #revoked: CloudAppError | undefined
  /** Of calls that bring none. Shared, as many short calls in a row must not hold the thread either. */
  readonly #pace = new OwnPace()

  private constructor(shim: Shim, handle: number, options: Pick<LocalMemoryOptions, 'writable' | 'pause'>) {
    this.#shim = shim
    this.#handle = handle
    this.#pause = options.pause
    this.end = shim.ca_mem_end(handle)
    this.sync = {
      read: (requests) => this.#runSync(new ReadOperation(requests)),
      readInto: (into, requests) => this.#runSync(new ReadOperation(requests, into)),
      walk: (plans) => {
        let room: number = LIMITS.resultBytes
        return planned(plans).map((operation) => {
          operation.cutAt(room)
          const result = this.#runSync(operation)
          room -= operation.bytes
          return result
        })
      },
    }
    if (options.writable === true) this.write = (requests, call) => this.#write(requests, call)
  }

  /**
   * Maps a RAM file.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_SOURCE` if it can not be opened or is no regular file with something in it;
   *   `ERR_CLOUDAPP_INVALID_ARGUMENT` for overlapping regions; `ERR_CLOUDAPP_NATIVE` without the native library.
   */
  static open(options: LocalMemoryOptions): LocalMemory {
    checkOptions('LocalMemory.open', options, OPTIONS)
    const { path, regions = [], writable = false } = options
    if (typeof path !== 'string' || path === '' || path.includes('\0')) throw invalid('path must name a file')
    const table = new BigUint64Array(Math.max(regions.length, 1) * 3)
    for (const [i, { address, size, offset }] of regions.entries()) {
      checkAddress('the address of a region', address)
      checkAddress('the size of a region', size)
      checkAddress('the offset of a region', offset)
      table.set([address, size, offset], i * 3)
    }
    const shim = loadShim()
    const flags = writable ? CA_OPEN_WRITE : 0
    const handle = checked(shim, shim.ca_mem_open_file(Buffer.from(`${path}\0`), table, regions.length, flags))
    return new LocalMemory(shim, handle, options)
  }

  /** Takes over a handle that another source of the native library opened; closes it. @internal */
  static over(shim: Shim, handle: number, options: Pick<LocalMemoryOptions, 'writable' | 'pause'>): LocalMemory {
    return new LocalMemory(shim, handle, options)
  }

  async read(requests: readonly ReadRequest[], options?: CallOptions): Promise<ReadResult[]> {
    return this.#run(new ReadOperation(requests), options)
  }

  /**
   * Reads as {@link LocalMemory.read} does, into the caller's buffer: for copying much memory out, where fresh memory
   * for each result would cost as much as the copying.
   *
   * @param into At least as long as all results together; they follow one another from its beginning.
   * @returns results whose `bytes` are views of `into`.
   */
  async readInto(into: Uint8Array, requests: readonly ReadRequest[], options?: CallOptions): Promise<ReadResult[]> {
    return this.#run(new ReadOperation(requests, into), options)
  }

  async walk(plans: readonly WalkPlan[], options?: CallOptions): Promise<WalkResult[]> {
    const results: WalkResult[] = []
    let room: number = LIMITS.resultBytes
    for (const operation of planned(plans)) {
      operation.cutAt(room)
      results.push(await this.#run(operation, options))
      room -= operation.bytes
    }
    return results
  }

  async pages(request: PagesRequest, options?: CallOptions): Promise<PagesResult> {
    return this.#run(new PagesOperation(request), options)
  }

  async search(request: SearchRequest, options?: CallOptions): Promise<SearchResult> {
    return this.#run(new SearchOperation(request), options)
  }

  async digest(request: DigestRequest, options?: CallOptions): Promise<DigestResult> {
    return this.#run(new DigestOperation(request), options)
  }

  /** Drops cached upper levels of page tables. Needed only by who changes a paused guest's tables by other means. */
  invalidate(): void {
    this.#open()
    checked(this.#shim, this.#shim.ca_mem_invalidate(this.#handle))
  }

  /**
   * Takes every view away at once, calls under way included; later use throws `reason`, also after close. Idempotent.
   *
   * For who gave this object to somebody and takes it back: `openXenDirect` does when the right it was opened by ends. A
   * broker does not: what its holders have is a session and no view, and the memory it reads for one it reads for others.
   *
   * @param reason `ERR_CLOUDAPP_REVOKED` by default
   */
  revoke(reason = new CloudAppError('ERR_CLOUDAPP_REVOKED', 'the memory was revoked')): void {
    if (this.#closed || this.#revoked !== undefined) return
    this.#revoked = reason
    checked(this.#shim, this.#shim.ca_mem_revoke(this.#handle))
  }

  /** Unmaps. Idempotent; calls under way end with `ERR_CLOUDAPP_CLOSED`. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    checked(this.#shim, this.#shim.ca_mem_close(this.#handle))
  }

  async #write(requests: readonly WriteRequest[], options?: CallOptions): Promise<WriteResult[]> {
    checkWrites(requests)
    const results: WriteResult[] = []
    for (const request of requests) results.push(await this.#run(new WriteOperation(request), options))
    return results
  }

  async #run<T>(operation: Operation<T>, options?: CallOptions): Promise<T> {
    const { signal, pace = this.#pace } = options ?? {}
    throwIfAborted(signal)
    const own = pace === this.#pace
    const brief = own && operation.brief !== false
    const wait = brief ? this.#pace.begin() : pace.next()
    // Nothing but short calls ran since one that had it looked after.
    let armed = brief && !this.#pace.looked ? CA_ARMED : 0
    // The usual short call costs no turn of the promises either.
    let budget = typeof wait === 'number' ? wait : await wait
    throwIfAborted(signal)
    const workspace = this.#borrow()
    try {
      const before = this.#pausedIn()
      while (!this.#step(operation, workspace, budget, armed)) {
        armed = 0
        budget = await pace.next()
        throwIfAborted(signal)
      }
      return operation.result(before !== undefined && before === this.#pausedIn())
    } finally {
      this.#spare.push(workspace)
    }
  }

  #runSync<T>(operation: Operation<T>): T {
    const workspace = this.#borrow()
    try {
      const before = this.#pausedIn()
      let armed = this.#pace.beginSync() ? CA_ARMED : 0
      while (!this.#step(operation, workspace, UNSLICED, armed)) armed = 0
      return operation.result(before !== undefined && before === this.#pausedIn())
    } finally {
      this.#spare.push(workspace)
    }
  }

  #step(operation: Operation<unknown>, workspace: Workspace, budget: number, armed = 0): boolean {
    this.#open()
    const pausedIn = this.#pausedIn()
    const kept = pausedIn !== undefined && pausedIn === this.#cachedIn ? CA_KEEP : 0
    this.#cachedIn = pausedIn
    return operation.step({ shim: this.#shim, handle: this.#handle, flags: kept | armed, budget }, workspace)
  }

  #borrow(): Workspace {
    const workspace = this.#spare.pop()
    if (workspace === undefined) return newWorkspace()
    workspace.cursor.fill(0)
    return workspace
  }

  /** The pause generation while the VM is paused. */
  #pausedIn(): number | undefined {
    return this.#pause?.paused() === true ? this.#pause.generation() : undefined
  }

  #open(): void {
    if (this.#revoked !== undefined) throw this.#revoked
    if (this.#closed) throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the memory is closed')
  }
}

/** All plans checked before the first is walked. */
function planned(plans: readonly WalkPlan[]): WalkOperation[] {
  checkLimit('batch', plans.length)
  return plans.map((plan) => new WalkOperation(plan))
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted !== true) return
  throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'the call was aborted', { cause: signal.reason })
}
