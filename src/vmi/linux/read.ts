import { CloudAppError } from '../../errors.js'
import type { Fault, GuestMemory, ReadRequest, ReadResult, Space } from '../memory.js'

/** Turns a fault into the error for a caller who needed the bytes. */
export function faultError(what: string, fault: Fault): CloudAppError {
  return new CloudAppError(
    'ERR_CLOUDAPP_TRANSLATION',
    `${what}: 0x${fault.address.toString(16)} can not be read (${fault.reason} at level ${fault.level})`,
    { address: fault.address, details: { reason: fault.reason, level: fault.level, entry: fault.entry } },
  )
}

const MAX_STRING = 65_536

/** Single typed reads of one address space. For many addresses use the batches of {@link memory}. */
export class GuestReader {
  readonly memory: GuestMemory
  /** The address space reads are in. */
  readonly space: Space

  constructor(memory: GuestMemory, space: Space) {
    this.memory = memory
    this.space = space
  }

  /** Runs one request. */
  async readOne(request: ReadRequest): Promise<ReadResult> {
    const [result] = await this.memory.read([request])
    if (result === undefined) throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', 'the source answered no result')
    return result
  }

  /** Reads `length` bytes. @throws ERR_CLOUDAPP_TRANSLATION with the first address that could not be read */
  async readBytes(at: bigint, length: number): Promise<Uint8Array> {
    const { bytes, faults } = await this.readOne({ space: this.space, at, length })
    const [fault] = faults
    if (fault !== undefined) throw faultError('read', fault)
    return bytes
  }

  /** Reads a 64-bit word. @throws ERR_CLOUDAPP_TRANSLATION */
  async readU64(at: bigint): Promise<bigint> {
    return view(await this.readBytes(at, 8)).getBigUint64(0, true)
  }

  /** Reads a pointer. The same as {@link readU64}; says what is meant. @throws ERR_CLOUDAPP_TRANSLATION */
  readPointer(at: bigint): Promise<bigint> {
    return this.readU64(at)
  }

  /** Reads a 32-bit word. @throws ERR_CLOUDAPP_TRANSLATION */
  async readU32(at: bigint): Promise<number> {
    return view(await this.readBytes(at, 4)).getUint32(0, true)
  }

  /**
   * Reads 64-bit words at many addresses in one crossing; undefined where the address can not be read.
   */
  async readPointers(at: readonly bigint[]): Promise<(bigint | undefined)[]> {
    if (at.length === 0) return []
    const { bytes, faults } = await this.readOne({ space: this.space, at: BigUint64Array.from(at), length: 8 })
    const words = view(bytes)
    const values: (bigint | undefined)[] = at.map((_, i) => words.getBigUint64(8 * i, true))
    for (const fault of faults) values[fault.index] = undefined
    return values
  }

  /**
   * Reads a NUL-terminated string of at most `max` bytes (a longer one is cut there), as UTF-8 with U+FFFD for what is
   * none. Control characters are kept: escape them before they reach a terminal.
   * @throws ERR_CLOUDAPP_TRANSLATION if it runs into an address that can not be read
   */
  async readString(at: bigint, max = 256): Promise<string> {
    if (!Number.isInteger(max) || max < 1 || max > MAX_STRING)
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `readString: max must be 1…${MAX_STRING}`)
    const { bytes, faults } = await this.readOne({ space: this.space, at, length: max })
    const end = bytes.indexOf(0)
    const [fault] = faults
    // A string may end just before a page that is not there.
    if (fault !== undefined && (end < 0 || at + BigInt(end) >= fault.address)) throw faultError('string', fault)
    return decodeText(end < 0 ? bytes : bytes.subarray(0, end))
  }
}

export function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

const utf8 = new TextDecoder('utf-8', { ignoreBOM: true })

/** UTF-8 with U+FFFD for malformed bytes. */
export function decodeText(bytes: Uint8Array): string {
  return utf8.decode(bytes)
}

/** The text of a fixed field: up to its first NUL, or all of it. */
export function fixedText(bytes: Uint8Array): string {
  return textAt(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length), 0, bytes.length)
}

/** The same of the `size` bytes from `start` on. */
export function textAt(bytes: Buffer, start: number, size: number): string {
  let end = start
  let all = 0
  for (; end < start + size && bytes[end] !== 0; end++) all |= bytes[end] as number
  // Names are short and ASCII, and for a few letters a decoder takes several times as long.
  return all < 0x80 ? bytes.toString('latin1', start, end) : decodeText(bytes.subarray(start, end))
}
