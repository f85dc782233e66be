import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import type { Session } from '../transport/session.js'
import {
  checkAddress,
  checkInteger,
  checkLimit,
  checkPlan,
  checkRange,
  checkReads,
  checkSpace,
} from '../vmi/local-check.js'
import {
  type CallOptions,
  type DigestRequest,
  type DigestResult,
  type GuestMemory,
  LIMITS,
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
import { decodeReadResults, decodeWriteResults, encodeReads, encodeWrites } from './wire/read.js'
import {
  decodeDigestResult,
  decodePagesResult,
  decodeSearchResult,
  encodeDigest,
  encodePages,
  encodeSearch,
} from './wire/scan.js'
import { decodeWalkResults, encodeWalks } from './wire/walk.js'

/** The memory verbs of a delegation at the far end: a message as bytes in, a message as bytes out. */
export interface RemoteMemoryStub {
  read(message: Uint8Array, job: number): PromiseLike<unknown>
  walk(message: Uint8Array, job: number): PromiseLike<unknown>
  pages(message: Uint8Array, job: number): PromiseLike<unknown>
  search(message: Uint8Array, job: number): PromiseLike<unknown>
  digest(message: Uint8Array, job: number): PromiseLike<unknown>
  write(message: Uint8Array, job: number): PromiseLike<unknown>
  cancel(job: number): PromiseLike<unknown>
}

/** A guest's memory behind a broker: the seam's verbs, each batch one round trip. */
export class RemoteMemory implements GuestMemory {
  readonly end: bigint
  readonly write?: (requests: readonly WriteRequest[], options?: CallOptions) => Promise<WriteResult[]>
  readonly #session: Session<unknown>
  readonly #stub: RemoteMemoryStub
  #jobs = 0

  constructor(session: Session<unknown>, stub: RemoteMemoryStub, end: bigint, writable: boolean) {
    this.#session = session
    this.#stub = stub
    this.end = end
    if (writable) this.write = (requests, options) => this.#write(requests, options)
  }

  async read(requests: readonly ReadRequest[], options?: CallOptions): Promise<ReadResult[]> {
    checkReads(requests)
    return decodeReadResults(await this.#call('read', encodeReads(requests), options), requests)
  }

  async walk(plans: readonly WalkPlan[], options?: CallOptions): Promise<WalkResult[]> {
    checkLimit('batch', plans.length)
    for (const plan of plans) checkPlan(plan)
    return decodeWalkResults(await this.#call('walk', encodeWalks(plans), options), plans)
  }

  async pages(request: PagesRequest, options?: CallOptions): Promise<PagesResult> {
    checkSpace(request.space)
    checkRange(request.start, request.end)
    checkInteger('limit', request.limit, 1)
    return decodePagesResult(await this.#call('pages', encodePages(request), options), request)
  }

  async search(request: SearchRequest, options?: CallOptions): Promise<SearchResult> {
    checkSpace(request.space)
    checkRange(request.start, request.end)
    checkInteger('limit', request.limit, 1)
    return decodeSearchResult(await this.#call('search', encodeSearch(request), options), request)
  }

  async digest(request: DigestRequest, options?: CallOptions): Promise<DigestResult> {
    checkSpace(request.space)
    checkRange(request.start, request.end)
    return decodeDigestResult(await this.#call('digest', encodeDigest(request), options), request)
  }

  async #write(requests: readonly WriteRequest[], options?: CallOptions): Promise<WriteResult[]> {
    checkLimit('batch', requests.length)
    let total = 0
    for (const { space, at, bytes } of requests) {
      checkSpace(space)
      checkAddress('at', at)
      checkLimit('readLength', bytes.length)
      total += bytes.length
    }
    checkLimit('resultBytes', total)
    // The broker takes messages of one request's size: a larger batch goes in several, in order.
    const results: WriteResult[] = []
    for (let from = 0; from < requests.length; ) {
      let to = from
      let size = 0
      do size += requests[to++]?.bytes.length ?? 0
      while (to < requests.length && size + (requests[to]?.bytes.length ?? 0) <= LIMITS.readLength)
      const part = requests.slice(from, to)
      results.push(...decodeWriteResults(await this.#call('write', encodeWrites(part), options), part))
      from = to
    }
    return results
  }

  #call(verb: Exclude<keyof RemoteMemoryStub, 'cancel'>, message: Uint8Array, options?: CallOptions): Promise<unknown> {
    if (options === undefined) return this.#session.settle(this.#stub[verb](message, 0))
    checkOptions(verb, options, ['signal'])
    const { signal } = options
    if (signal === undefined) return this.#session.settle(this.#stub[verb](message, 0))
    if (signal.aborted) {
      return Promise.reject(new CloudAppError('ERR_CLOUDAPP_ABORTED', 'The call was aborted', { cause: signal.reason }))
    }
    this.#jobs = (this.#jobs % 0x7fff_ffff) + 1
    const job = this.#jobs
    const cancel = () => {
      // Nobody waits for the answer; the session's end is told elsewhere.
      this.#stub.cancel(job).then(undefined, () => undefined)
    }
    return this.#session.settle(this.#stub[verb](message, job), { signal, cancel })
  }
}
