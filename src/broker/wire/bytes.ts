import { CloudAppError } from '../../errors.js'

/** From this length on bytes travel beside the table of a result instead of in it, so that they are not copied. */
const BESIDE = 16_384
const FEW = 16

/** How many bytes of the table {@link ByteWriter.large} takes. */
export function inTable(value: Uint8Array | BigUint64Array): number {
  return value.byteLength < BESIDE ? value.byteLength : 0
}

/** Writes little-endian fields one after the other. */
export class ByteWriter {
  readonly #beside: Uint8Array[] = []
  #bytes: Uint8Array
  #view: DataView
  #at = 0

  constructor(expected = 256) {
    this.#bytes = new Uint8Array(expected)
    this.#view = new DataView(this.#bytes.buffer)
  }

  u8(value: number): void {
    this.#room(1)
    this.#view.setUint8(this.#at, value)
    this.#at += 1
  }

  u32(value: number): void {
    this.#room(4)
    this.#view.setUint32(this.#at, value, true)
    this.#at += 4
  }

  u64(value: bigint): void {
    this.#room(8)
    this.#view.setBigUint64(this.#at, value, true)
    this.#at += 8
  }

  /** A value up to and including 2^64: the end of an address space. */
  end(value: bigint): void {
    this.u8(value >> 64n === 0n ? 0 : 1)
    this.u64(BigInt.asUintN(64, value))
  }

  /** An integer of at most 53 bits and a sign. */
  integer(value: number): void {
    this.#room(8)
    this.#view.setFloat64(this.#at, value, true)
    this.#at += 8
  }

  bytes(value: Uint8Array): void {
    this.#room(value.length)
    // A few bytes are there before a copy has been called.
    if (value.length > FEW) this.#bytes.set(value, this.#at)
    else for (let i = 0; i < value.length; i++) this.#bytes[this.#at + i] = value[i] as number
    this.#at += value.length
  }

  u64s(values: BigUint64Array): void {
    this.bytes(plain(values))
  }

  /** Bytes that may be many: if so they are not copied, and belong to the {@link message} from here on. */
  large(value: Uint8Array | BigUint64Array): void {
    if (inTable(value) !== value.byteLength) this.#beside.push(plain(value))
    else this.bytes(value instanceof Uint8Array ? value : plain(value))
  }

  done(): Uint8Array {
    return this.#bytes.subarray(0, this.#at)
  }

  /** What was written, and after it what lies beside it, in its order. */
  message(): Uint8Array[] {
    return [this.done(), ...this.#beside]
  }

  #room(more: number): void {
    const need = this.#at + more
    if (need <= this.#bytes.length) return
    const bytes = new Uint8Array(Math.max(need, this.#bytes.length * 2))
    bytes.set(this.#bytes.subarray(0, this.#at))
    this.#bytes = bytes
    this.#view = new DataView(bytes.buffer)
  }
}

/** Reads what a {@link ByteWriter} of a peer wrote, trusting none of it. */
export class ByteReader {
  readonly #beside: readonly unknown[]
  #taken = 0
  readonly #bytes: Uint8Array
  readonly #view: DataView
  #at = 0

  constructor(bytes: unknown, beside: readonly unknown[] = []) {
    if (!(bytes instanceof Uint8Array)) throw malformed('bytes are missing')
    this.#beside = beside
    this.#bytes = plain(bytes)
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  u8(): number {
    return this.#view.getUint8(this.#take(1))
  }

  flag(): boolean {
    const value = this.u8()
    if (value > 1) throw malformed('a flag is neither 0 nor 1')
    return value === 1
  }

  u32(): number {
    return this.#view.getUint32(this.#take(4), true)
  }

  u64(): bigint {
    return this.#view.getBigUint64(this.#take(8), true)
  }

  end(): bigint {
    const high = this.flag()
    const low = this.u64()
    if (high && low !== 0n) throw malformed('an address past 2^64')
    return high ? 1n << 64n : low
  }

  integer(): number {
    const value = this.#view.getFloat64(this.#take(8), true)
    if (!Number.isSafeInteger(value)) throw malformed('an offset that is no integer')
    return value
  }

  /** `length` bytes of the message itself, not copied. */
  bytes(length: number): Uint8Array {
    const at = this.#take(length)
    return this.#bytes.subarray(at, at + length)
  }

  u64s(count: number): BigUint64Array {
    // Copied: the message need not be aligned.
    return new BigUint64Array(this.bytes(count * 8).slice().buffer)
  }

  /** What {@link ByteWriter.large} wrote. */
  large(length: number): Uint8Array {
    if (length < BESIDE) return this.bytes(length)
    const value = this.#beside[this.#taken++]
    if (!(value instanceof Uint8Array) || value.length !== length) throw malformed('a result of a wrong size')
    return plain(value)
  }

  largeU64s(count: number): BigUint64Array {
    return new BigUint64Array(this.large(count * 8).slice().buffer)
  }

  /** How many bytes are left: no count may promise more. */
  get left(): number {
    return this.#bytes.length - this.#at
  }

  finish(): void {
    if (this.left !== 0 || this.#taken !== this.#beside.length) throw malformed('bytes after the end')
  }

  #take(length: number): number {
    const at = this.#at
    if (length > this.#bytes.length - at) throw malformed('it is cut short')
    this.#at = at + length
    return at
  }
}

/** The same bytes; a Buffer's views would be Buffers too. */
function plain(value: Uint8Array | BigUint64Array): Uint8Array {
  return new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
}

export function malformed(what: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `A malformed memory message: ${what}`)
}

/** Runs `body` with a fresh reader over `message` and refuses what it leaves over. */
export function decodeWith<T>(message: unknown, body: (reader: ByteReader) => T): T {
  const reader = new ByteReader(message)
  const result = body(reader)
  reader.finish()
  return result
}

/** The same for {@link ByteWriter.message}. */
export function decodeMessage<T>(message: unknown, body: (reader: ByteReader) => T): T {
  if (!Array.isArray(message)) throw malformed('no table of results')
  const reader = new ByteReader(message[0], message.slice(1))
  const result = body(reader)
  reader.finish()
  return result
}
