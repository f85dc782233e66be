import type { AddressRange } from '../../capabilities/ranges.js'
import type { CloudAppError } from '../../errors.js'
import type { CallOptions, Fault, GuestMemory, Pace, ReadResult, Space } from '../../vmi/memory.js'
import { reaches } from './touches.js'

/** Bytes of one read, so that no single one takes much longer than a slice. */
const CHUNK = 256 * 1024

/** What was read at many addresses. */
export interface CheckedBytes {
  /** `length` bytes for each address; zero where there is a fault. */
  readonly bytes: Uint8Array
  /** By the index of the address. */
  readonly faults: ReadonlyMap<number, Fault>
}

/**
 * Reads one space, each address checked before it is read: one outside `ranges` is a fault, as if nothing were there.
 * The check and the read are of the same value, which the guest can not change between them.
 */
export class CheckedReader {
  readonly #memory: GuestMemory
  readonly #space: Space
  readonly #ranges: readonly AddressRange[]
  readonly #signal: AbortSignal
  readonly #pace: Pace
  /** True as long as each read was of a VM that stood still. */
  consistent = true

  constructor(memory: GuestMemory, space: Space, ranges: readonly AddressRange[], call: Required<CallOptions>) {
    this.#memory = memory
    this.#space = space
    this.#ranges = ranges
    this.#signal = call.signal
    this.#pace = call.pace
  }

  /** The fault of an address that may not be read, or undefined. */
  refusal(at: bigint, length: number): Fault | undefined {
    if (reaches(this.#ranges, at, at + BigInt(length))) return undefined
    return { reason: 'denied', address: at, level: 0, entry: 0n }
  }

  /** A 64-bit word. */
  async word(at: bigint): Promise<bigint | Fault> {
    const refused = this.refusal(at, 8)
    if (refused !== undefined) return refused
    const { bytes, faults } = await this.#run(at, 8)
    return faults[0] ?? Buffer.from(bytes.buffer, bytes.byteOffset, 8).readBigUInt64LE()
  }

  /** A byte. */
  async byte(at: bigint): Promise<number | Fault> {
    const refused = this.refusal(at, 1)
    if (refused !== undefined) return refused
    const { bytes, faults } = await this.#run(at, 1)
    return faults[0] ?? (bytes[0] as number)
  }

  /** `length` bytes at each address. */
  async many(addresses: readonly bigint[], length: number): Promise<CheckedBytes> {
    const bytes = new Uint8Array(addresses.length * length)
    const faults = new Map<number, Fault>()
    const good: number[] = []
    for (const [i, at] of addresses.entries()) {
      const refused = this.refusal(at, length)
      if (refused === undefined) good.push(i)
      else faults.set(i, refused)
    }
    const step = Math.max(1, Math.floor(CHUNK / length))
    for (let from = 0; from < good.length; from += step) {
      const part = good.slice(from, from + step)
      const result = await this.#run(
        BigUint64Array.from(part, (i) => addresses[i] as bigint),
        length,
      )
      for (const [n, i] of part.entries()) bytes.set(result.bytes.subarray(n * length, (n + 1) * length), i * length)
      for (const { index, ...fault } of result.faults) faults.set(part[index] as number, fault)
    }
    for (const i of faults.keys()) bytes.fill(0, i * length, (i + 1) * length)
    return { bytes, faults }
  }

  async #run(at: bigint | BigUint64Array, length: number): Promise<ReadResult> {
    const request = [{ space: this.#space, at, length }]
    if (this.#signal.aborted) throw this.#signal.reason as CloudAppError
    await this.#pace.next()
    if (this.#signal.aborted) throw this.#signal.reason as CloudAppError
    const { sync } = this.#memory
    const [result] = sync === undefined ? await this.#memory.read(request, { pace: this.#pace }) : sync.read(request)
    if (!(result as ReadResult).consistent) this.consistent = false
    return result as ReadResult
  }
}
