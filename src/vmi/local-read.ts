import { checkReads, invalid } from './local-check.js'
import { ended, fault, type Operation, type Slice, scratch, type Workspace, word } from './local-operation.js'
import type { Fault, ReadRequest, ReadResult } from './memory.js'

const FAULT_ROWS = 256
const FAULT_BYTES = 32
const NO_ADDRESSES = new BigUint64Array(1)

/** Bytes whose copying takes about as long as a look at the clock where that is a system call. */
const BRIEF = 64 * 1024

type IndexedFault = Fault & { readonly index: number }

const SLAB = 64 * 1024
/** Where the next small result goes. */
let slab = new Uint8Array()
let used = 0

/**
 * Memory the library writes every byte of before anybody sees it. Clearing it first, and for large results faulting
 * fresh pages in, would cost as much as the copy; so would memory of its own for each small one.
 */
function uninitialised(bytes: number): Uint8Array {
  if (bytes > SLAB / 8) return new Uint8Array(Buffer.allocUnsafeSlow(bytes).buffer)
  if (used + bytes > slab.length) {
    slab = new Uint8Array(Buffer.allocUnsafeSlow(SLAB).buffer)
    used = 0
  }
  const part = slab.subarray(used, used + bytes)
  used = (used + bytes + 7) & ~7
  return part
}

/** One batch of reads: one table of requests, one of addresses, one buffer of results. */
export class ReadOperation implements Operation<ReadResult[]> {
  readonly brief: boolean
  readonly #requests: readonly ReadRequest[]
  /** The workspace's, or one of its own if that is too small. */
  #table: BigUint64Array | undefined
  readonly #addresses: BigUint64Array
  readonly #count: number
  readonly #out: Uint8Array
  /** By request; those without a fault have no entry. */
  #faults: Map<number, IndexedFault[]> | undefined

  /** Into `into` if it is given, else into memory of its own. */
  constructor(requests: readonly ReadRequest[], into?: Uint8Array) {
    const { addresses, bytes } = checkReads(requests)
    if (into !== undefined && (!(into instanceof Uint8Array) || into.length < bytes)) {
      throw invalid(`into must be a Uint8Array of at least ${bytes} bytes`)
    }
    this.brief = bytes < BRIEF
    this.#requests = requests
    this.#count = addresses
    this.#out = into !== undefined && into.length > 0 ? into : uninitialised(Math.max(bytes, 1))
    const only = requests.length === 1 ? requests[0]?.at : undefined
    const shared = only instanceof BigUint64Array && only.length > 0
    this.#addresses = shared ? only : addresses === 0 ? NO_ADDRESSES : new BigUint64Array(addresses)
    if (shared) return
    let first = 0
    for (const { at } of requests) {
      if (typeof at === 'bigint') this.#addresses[first++] = at
      else {
        this.#addresses.set(at, first)
        first += at.length
      }
    }
  }

  /** u64 { space, first address, addresses, length, offset of the results } of each request. */
  #encode(workspace: Workspace): BigUint64Array {
    const fits = this.#requests.length * 5 <= workspace.table.length
    const table = fits ? workspace.table : new BigUint64Array(this.#requests.length * 5)
    // Small numbers go in by halves: making bigints of them would cost more than reading a word of the guest.
    const halves = fits ? workspace.halves : new Uint32Array(table.buffer)
    let first = 0
    let offset = 0
    for (let i = 0; i < this.#requests.length; i++) {
      const { space, at, length } = this.#requests[i] as ReadRequest
      const count = typeof at === 'bigint' ? 1 : at.length
      table[i * 5] = space
      for (let half = i * 10 + 3; half < i * 10 + 10; half += 2) halves[half] = 0
      halves[i * 10 + 2] = first
      halves[i * 10 + 4] = count
      halves[i * 10 + 6] = length
      halves[i * 10 + 8] = offset
      first += count
      offset += count * length
    }
    return table
  }

  step({ shim, handle, flags, budget }: Slice, workspace: Workspace): boolean {
    const faults = scratch(workspace, FAULT_ROWS * FAULT_BYTES)
    this.#table ??= this.#encode(workspace)
    const result = shim.ca_read(
      handle,
      flags,
      budget,
      this.#table,
      this.#requests.length,
      this.#addresses,
      this.#count,
      this.#out,
      this.#out.length,
      faults,
      FAULT_ROWS,
      workspace.cursor,
      workspace.status,
    )
    const done = ended(shim, result)
    const rows = word(workspace, 0)
    if (rows > 0) this.#take(faults, rows)
    return done
  }

  #take(table: Uint8Array, rows: number): void {
    const view = new DataView(table.buffer, table.byteOffset)
    for (let row = 0; row < rows; row++) {
      const at = row * FAULT_BYTES
      const why = fault(
        view.getUint32(at + 8, true),
        view.getUint32(at + 12, true),
        view.getBigUint64(at + 16, true),
        view.getBigUint64(at + 24, true),
      )
      const request = view.getUint32(at, true)
      this.#faults ??= new Map()
      const faults = this.#faults.get(request) ?? []
      if (faults.length === 0) this.#faults.set(request, faults)
      faults.push({ index: view.getUint32(at + 4, true), ...why })
    }
  }

  result(consistent: boolean): ReadResult[] {
    const results: ReadResult[] = []
    let offset = 0
    for (let i = 0; i < this.#requests.length; i++) {
      const { at, length } = this.#requests[i] as ReadRequest
      const size = (typeof at === 'bigint' ? 1 : at.length) * length
      // Of a single request it is usually all of it: another view costs as much as reading a few words.
      const bytes = size === this.#out.length ? this.#out : this.#out.subarray(offset, offset + size)
      offset += size
      results.push({ bytes, faults: this.#faults?.get(i) ?? [], consistent })
    }
    return results
  }
}
