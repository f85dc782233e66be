import type { AddressRange } from '../../capabilities/ranges.js'
import { checkReads } from '../../vmi/local-check.js'
import type {
  CallOptions,
  DigestRequest,
  DigestResult,
  GuestMemory,
  PagesRequest,
  PagesResult,
  ReadRequest,
  ReadResult,
  SearchRequest,
  SearchResult,
  Space,
  WalkPlan,
  WalkResult,
  WriteRequest,
  WriteResult,
} from '../../vmi/memory.js'
import { OwnPace } from '../../vmi/pace.js'
import { checkTouches, readTouches, type Touch } from './touches.js'
import { scopedWalk } from './walk.js'

const NEVER = new AbortController().signal

/**
 * The part of a memory that a scope reaches. What is asked for by its address and lies outside is refused
 * (`ERR_CLOUDAPP_DENIED`); where the guest's own pointers lead outside, the walk finds a fault (`denied`).
 */
export class ScopedMemory implements GuestMemory {
  readonly end: bigint
  readonly write?: (requests: readonly WriteRequest[], options?: CallOptions) => Promise<WriteResult[]>
  readonly #memory: GuestMemory
  readonly #ranges: (space: Space) => readonly AddressRange[]
  readonly #held: () => unknown

  /** @param held names the pause that holds the VM now, if its end would be seen */
  constructor(memory: GuestMemory, ranges: (space: Space) => readonly AddressRange[], held: () => unknown) {
    this.#memory = memory
    this.#ranges = ranges
    this.#held = held
    this.end = memory.end
    if (memory.write !== undefined) this.write = (requests, options) => this.#write(requests, options)
  }

  async read(requests: readonly ReadRequest[], options?: CallOptions): Promise<ReadResult[]> {
    checkReads(requests)
    this.#check(readTouches(requests))
    return this.#memory.read(requests, options)
  }

  async walk(plans: readonly WalkPlan[], options?: CallOptions): Promise<WalkResult[]> {
    return scopedWalk(this.#memory, this.#ranges, plans, {
      signal: NEVER,
      pace: new OwnPace(),
      ...options,
      held: this.#held,
    })
  }

  async pages(request: PagesRequest, options?: CallOptions): Promise<PagesResult> {
    this.#check([request])
    return this.#memory.pages(request, options)
  }

  async search(request: SearchRequest, options?: CallOptions): Promise<SearchResult> {
    this.#check([request])
    return this.#memory.search(request, options)
  }

  async digest(request: DigestRequest, options?: CallOptions): Promise<DigestResult> {
    this.#check([request])
    return this.#memory.digest(request, options)
  }

  async #write(requests: readonly WriteRequest[], options?: CallOptions): Promise<WriteResult[]> {
    const touches = requests.map(({ space, at, bytes }) => ({ space, start: at, end: at + BigInt(bytes.length) }))
    checkTouches(this.#ranges, 'memory.write', touches)
    return (this.#memory.write as NonNullable<GuestMemory['write']>)(requests, options)
  }

  #check(touches: Iterable<Touch>): void {
    checkTouches(this.#ranges, 'memory.read', touches)
  }
}
