/**
 * The first seam: what can be asked of a guest's memory. Every verb takes a batch, so that one crossing (into the
 * native library, or over the wire to a broker) does much work. The Linux layer is written once against this
 * interface; a RAM file, a hypervisor and a far broker implement it.
 *
 * The guest is hostile: each verb is bounded, and running into a bound is a stated result (`end`), not an exception.
 * A wrong address is a {@link Fault} beside the other results; only misuse, a closed handle or a lost source throw.
 */

/**
 * An address space: {@link PHYSICAL}, or a page-table root with the number of its levels in the low bits, as
 * {@link virtualSpace} makes it. One integer, because it crosses the FFI and the wire with every request.
 */
export type Space = bigint & { readonly [spaceBrand]?: never }
declare const spaceBrand: unique symbol

/** Guest-physical addresses. */
export const PHYSICAL: Space = 0n

/** The space translated by the x86-64 page table at physical address `root` (CR3; its low 12 bits are ignored). */
export function virtualSpace(root: bigint, levels: 4 | 5): Space {
  return (root & 0x000f_ffff_ffff_f000n) | BigInt(levels)
}

/** Why an address could not be used. */
export type FaultReason =
  /** A page-table entry on the way is not present. */
  | 'not-present'
  /** Bits 63…47 (or 56) are not a sign extension. */
  | 'non-canonical'
  /** A page-table entry has a reserved bit set. */
  | 'reserved-bit'
  /** The physical address (of the data or of a table) is outside the guest's RAM. */
  | 'outside-ram'
  /** The page was there but the source could not give it (hypervisor error, truncated file). */
  | 'source'
  /**
   * The capability does not reach the address: where a guest's pointer leads out of the memory it is limited to. Writing: the
   * byte holds a breakpoint of an event agent.
   */
  | 'denied'

/** A translation fault. Source of levels and bits: Intel SDM vol. 3A, 4.5. */
export interface Fault {
  readonly reason: FaultReason
  /** The address that was asked for, or the first byte of it that failed. */
  readonly address: bigint
  /** Page-table level at which the walk stopped: 5 or 4 = root … 1 = PTE, 0 = the page itself. */
  readonly level: number
  /** The entry that stopped the walk; 0n where there was none. */
  readonly entry: bigint
}

/** Reads `length` bytes at one address, or at each of many addresses. */
export interface ReadRequest {
  readonly space: Space
  readonly at: bigint | BigUint64Array
  /** Bytes at each address, at most {@link LIMITS.readLength}. */
  readonly length: number
}

export interface ReadResult {
  /** `length` bytes for each address, in the order asked; bytes that faulted are zero. Owned by the caller. */
  readonly bytes: Uint8Array
  /** One entry per address that faulted, by its index in `at`. Empty if all could be read. */
  readonly faults: readonly (Fault & { readonly index: number })[]
  /** True if the VM was paused throughout: what was read together belongs together. */
  readonly consistent: boolean
}

/**
 * A field to fetch for every element of a walk: follow pointers from the element, then take `size` bytes.
 * With e the element's address: for each offset but the last, `e = *(u64 *)(e + offset)`; the field is at
 * `e + last offset`. Offsets may be negative (container_of).
 */
export interface Column {
  readonly path: readonly number[]
  /** Bytes, 1 to {@link LIMITS.columnSize}. */
  readonly size: number
}

interface WalkCommon {
  readonly space: Space
  readonly columns: readonly Column[]
  /** At most so many elements; at most {@link LIMITS.walkRows}. */
  readonly limit: number
}

/** A structure inside the guest to iterate. Kernel facts: include/linux/{list,rbtree,xarray,types}.h. */
export type WalkPlan = WalkCommon &
  (
    | {
        /** struct list_head ring: `head` is the anchor (not an element); `node` the offset of the link in an element. */
        readonly kind: 'list'
        readonly head: bigint
        readonly node: number
      }
    | {
        /** struct hlist_head chain. A pointer with bit 0 set ends the chain too (hlist_nulls). */
        readonly kind: 'hlist'
        readonly head: bigint
        readonly node: number
      }
    | {
        /** Array of `count` struct hlist_head. */
        readonly kind: 'hash'
        readonly head: bigint
        readonly count: number
        readonly node: number
      }
    | {
        /** struct rb_root: `head` is the address of the root pointer; in-order. rb_left/rb_right are at node+16/node+8. */
        readonly kind: 'rbtree'
        readonly head: bigint
        readonly node: number
      }
    | {
        /** struct xarray (and IDR): `head` is the address of xa_head; offsets in struct xa_node from BTF. */
        readonly kind: 'xarray'
        readonly head: bigint
        /** Offsets in struct xa_node, and slots a node (XA_CHUNK_SIZE). */
        readonly shiftOffset: number
        readonly slotsOffset: number
        readonly slots: number
      }
    | {
        /** `count` elements, `stride` bytes apart; with `pointers`, each is a pointer to the element (null ones are left out). */
        readonly kind: 'array'
        readonly head: bigint
        readonly count: number
        readonly stride: number
        readonly pointers?: boolean
      }
  )

/** State of one column of one row. */
export const CellState = {
  Ok: 0,
  /** A pointer on the path was null: bytes are zero. */
  Null: 1,
  /** An address on the path faulted: bytes are zero. */
  Fault: 2,
} as const

export interface WalkResult {
  readonly rows: number
  /** Virtual address of each element. */
  readonly addresses: BigUint64Array
  /** Per column, `rows * size` bytes. */
  readonly columns: readonly Uint8Array[]
  /** `rows * columns` cell states ({@link CellState}), row by row. */
  readonly cells: Uint8Array
  /**
   * How it ended: `complete`; `limit` (more were there); `cycle` (the structure returns into itself, not to its
   * head); `fault` (a link could not be followed, see `fault`). Rows before the end are good in each case.
   */
  readonly end: 'complete' | 'limit' | 'cycle' | 'fault'
  readonly fault?: Fault
  readonly consistent: boolean
}

/** Page permissions as bits: what every level of the page walk together allows. */
export const PageFlags = {
  Write: 1,
  User: 2,
  Execute: 4,
} as const

/** Enumerates the present mappings of `[start, end)` of a virtual space, also those of no RAM (devices). */
export interface PagesRequest {
  readonly space: Space
  readonly start: bigint
  /** Exclusive; 2^64 is allowed. */
  readonly end: bigint
  /** Only mappings that have all these {@link PageFlags} bits. */
  readonly want?: number
  /** At most so many runs; at most {@link LIMITS.pagesRuns}. */
  readonly limit: number
}

/** Runs of pages that are contiguous both virtually and physically and have equal flags. */
export interface PagesResult {
  readonly runs: number
  readonly virtual: BigUint64Array
  readonly physical: BigUint64Array
  /** Bytes of each run. */
  readonly sizes: BigUint64Array
  /** {@link PageFlags} of each run. */
  readonly flags: Uint8Array
  readonly end: 'complete' | 'limit'
  /** Virtual address to go on from when `end` is `limit`. */
  readonly next: bigint
  readonly consistent: boolean
}

/** Finds byte patterns in `[start, end)` of a space; holes are passed over. */
export interface SearchRequest {
  readonly space: Space
  readonly start: bigint
  readonly end: bigint
  /** At most {@link LIMITS.patterns} patterns of 1 to {@link LIMITS.patternLength} bytes. */
  readonly patterns: readonly Uint8Array[]
  /** Only matches whose address is `offset` modulo `align` (a power of two; 1 by default). */
  readonly align?: number
  readonly offset?: number
  /** At most so many matches; at most {@link LIMITS.matches}. */
  readonly limit: number
}

export interface SearchResult {
  readonly matches: readonly { readonly pattern: number; readonly at: bigint }[]
  readonly end: 'complete' | 'limit'
  /** Address to go on from when `end` is `limit`. */
  readonly next: bigint
  readonly consistent: boolean
}

/** Hashes each 4 KiB page of `[start, end)` (page aligned) where it is: no page content leaves. SHA-256. */
export interface DigestRequest {
  readonly space: Space
  readonly start: bigint
  readonly end: bigint
}

export interface DigestResult {
  readonly pages: number
  /** 32 bytes a page; zero where the page faulted. */
  readonly digests: Uint8Array
  /** 1 for each page that could be hashed, 0 for one that faulted. */
  readonly present: Uint8Array
  readonly consistent: boolean
}

/** Says when a call may work, and for how long: whoever serves many callers on one thread shares it among them by this. */
export interface Pace {
  /**
   * Asked before each slice of a call. Microseconds that it may hold the thread from now on, at least 1; a promise where it
   * has to wait first. After a wait the call looks at its signal, which may have ended the wait.
   */
  next(): number | Promise<number>
}

export interface CallOptions {
  /** Stops the call between two slices with ERR_CLOUDAPP_ABORTED. */
  readonly signal?: AbortSignal
  /** Without, a local source works about a millisecond at a time, and lets the event loop turn between. */
  readonly pace?: Pace
}

/** What one call can ask for. A request past a bound throws ERR_CLOUDAPP_LIMIT before any work is done. */
export const LIMITS = {
  /** Requests or plans in one batch. */
  batch: 4096,
  /** Addresses in one read request. */
  addresses: 65_536,
  /** Bytes at one address. */
  readLength: 16 * 1024 * 1024,
  /** Bytes all results of one batch hold together. */
  resultBytes: 64 * 1024 * 1024,
  walkRows: 1_048_576,
  /** Slots of an array or a hash table. */
  walkSlots: 16_777_216,
  columns: 32,
  columnSize: 4096,
  pathLength: 8,
  pagesRuns: 262_144,
  patterns: 16,
  patternLength: 256,
  matches: 65_536,
  digestPages: 1_048_576,
} as const

/** Reads a guest's memory. */
export interface MemoryReader {
  /** Reads every request of the batch. */
  read(requests: readonly ReadRequest[], options?: CallOptions): Promise<ReadResult[]>
  /** Iterates structures inside the guest and returns chosen fields as columns. */
  walk(plans: readonly WalkPlan[], options?: CallOptions): Promise<WalkResult[]>
  /** Enumerates the mappings of an address space. */
  pages(request: PagesRequest, options?: CallOptions): Promise<PagesResult>
  /** Finds byte patterns. */
  search(request: SearchRequest, options?: CallOptions): Promise<SearchResult>
  /** Hashes pages where they are. */
  digest(request: DigestRequest, options?: CallOptions): Promise<DigestResult>
}

/** The same verbs without the event loop, for a local source and for scans that must not interleave. */
export interface MemoryReaderSync {
  read(requests: readonly ReadRequest[]): ReadResult[]
  walk(plans: readonly WalkPlan[]): WalkResult[]
}

/** Writes a guest's memory. */
export interface MemoryWriter {
  /** Writes each request's bytes; a request that faults part way has written the bytes before the fault. */
  write(requests: readonly WriteRequest[], options?: CallOptions): Promise<WriteResult[]>
}

export interface WriteRequest {
  readonly space: Space
  readonly at: bigint
  readonly bytes: Uint8Array
}

export interface WriteResult {
  /** Bytes written before the fault, or all of them. */
  readonly written: number
  readonly fault?: Fault
}

/** A guest's memory as a source gives it; `write` only where the source was opened for writing. */
export interface GuestMemory extends MemoryReader, Partial<MemoryWriter> {
  /** Physical address after the last byte of RAM. */
  readonly end: bigint
  /** Present on a local source. */
  readonly sync?: MemoryReaderSync
}
