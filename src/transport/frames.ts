import { isUtf8 } from 'node:buffer'
import { decode, encode } from 'cborg'
import { CloudAppError } from '../errors.js'
import { decodeChecked } from './cbor-decode.js'
import { PartsEncoder } from './cbor-encode.js'
import { Gather } from './gather.js'

/** What a receiver takes in one frame. Set by the receiver alone; the peer never learns it but by being cut off. */
export interface FrameLimits {
  /** Bytes of one frame. 4 MiB by default: above any message of the interface that does not carry guest memory. */
  readonly frameBytes: number
  /** Nesting of arrays and maps. 32 by default: capnweb spends two levels on each array. */
  readonly depth: number
  /** Values in one frame, so that many tiny ones do not blow up in memory. 262,144 by default. */
  readonly items: number
}

export const FRAME_LIMITS: FrameLimits = { frameBytes: 4 * 1024 * 1024, depth: 32, items: 262_144 }

/** Bytes before each frame: its length, big-endian. */
export const FRAME_HEADER = 4

/**
 * One frame: four bytes of length (big-endian), then deterministic CBOR (RFC 8949, 4.2.1) of `value`; in parts, to be sent
 * one after the other. Long byte strings of the value are parts themselves, not copies: they belong to the frame from here on.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` if `value` has no CBOR form or is past 4 GiB.
 */
export function encodeFrameParts(value: unknown): { readonly parts: readonly Uint8Array[]; readonly size: number } {
  const encoder = new PartsEncoder(FRAME_HEADER)
  try {
    encoder.value(value)
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'The message has no wire form', { cause })
  }
  const parts = encoder.done()
  const size = encoder.length
  if (size - FRAME_HEADER > 0xffff_ffff) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'The message is longer than a frame can be')
  }
  const head = parts[0] as Uint8Array
  new DataView(head.buffer, head.byteOffset).setUint32(0, size - FRAME_HEADER)
  return { parts, size }
}

/** The same in one piece. */
export function encodeFrame(value: unknown): Uint8Array {
  const { parts } = encodeFrameParts(value)
  return parts.length === 1 ? (parts[0] as Uint8Array) : Buffer.concat(parts)
}

/** From this length on the bytes of a frame are not copied out of it. */
const OWN = 65_536

/** Cuts a stream of bytes into frames. Holds no more than one frame and one chunk. */
export class FrameReader {
  #chunks: Uint8Array[] = []
  readonly #gather = new Gather()
  #have = 0
  #joined: Uint8Array | undefined
  #limits: FrameLimits

  constructor(limits: FrameLimits = FRAME_LIMITS) {
    this.#limits = limits
  }

  /** Replaces the limits, from the next frame on: a peer that has proved who it is may send more. */
  set limits(limits: FrameLimits) {
    this.#limits = limits
  }

  push(chunk: Uint8Array): void {
    this.#gather.add(this.#chunks, chunk)
    this.#have += chunk.length
  }

  /** True if bytes of an unfinished frame are here: the stream must not end now. */
  get partial(): boolean {
    return this.#have > 0
  }

  /**
   * The next frame's value and its size in bytes, or undefined if it is not here yet.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_PROTOCOL` for a frame past a limit or not in canonical form. The stream is then of no use.
   */
  next(): { readonly value: unknown; readonly size: number } | undefined {
    if (this.#have < FRAME_HEADER) return undefined
    let first = this.#chunks[0] as Uint8Array
    if (first.length < FRAME_HEADER) first = this.#join()
    const size =
      ((first[0] as number) << 24) | ((first[1] as number) << 16) | ((first[2] as number) << 8) | (first[3] as number)
    const length = size >>> 0
    if (length > this.#limits.frameBytes) {
      throw broken(`a frame of ${length} bytes passes the limit of ${this.#limits.frameBytes}`)
    }
    const end = FRAME_HEADER + length
    if (this.#have < end) return undefined
    if (first.length < end) first = this.#join()
    // A long frame stands in memory of its own (see #join): its byte strings can stay views of it.
    const own = first === this.#joined && length >= OWN
    const body = first.subarray(FRAME_HEADER, end)
    if (first.length === end) this.#chunks.shift()
    else this.#chunks[0] = first.subarray(end)
    this.#have -= end
    if (own) this.#joined = undefined
    return { value: decodeBody(body, this.#limits, own), size: end }
  }

  #join(): Uint8Array {
    const all = new Uint8Array(this.#have)
    let at = 0
    for (const chunk of this.#chunks) {
      all.set(chunk, at)
      at += chunk.length
    }
    this.#chunks = [all]
    this.#joined = all
    return all
  }
}

/**
 * Decodes one canonical CBOR item of the frame data model: integers, floats, bytes, text, arrays, text-keyed maps, bool,
 * null.
 *
 * @param own true if the memory of `body` is given away: byte strings are then views of it.
 */
export function decodeBody(body: Uint8Array, limits: FrameLimits = FRAME_LIMITS, own = false): unknown {
  checkCanonical(body, limits)
  return decodeChecked(body, own)
}

function broken(what: string, cause?: unknown): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `The peer broke the wire protocol: ${what}`, { cause })
}

/**
 * Checks `body` to be exactly one item in the deterministic form of RFC 8949, 4.2.1, within the limits, without making any
 * value of it: shortest heads, definite lengths, no tags, map keys text in bytewise order without repeats, shortest
 * floats, UTF-8. One pass, no recursion; cborg's own strict mode
 * checks neither order nor floats nor depth.
 */
export function checkCanonical(body: Uint8Array, limits: FrameLimits): void {
  // Per open container: items still to come, and for a map the encoded key before (its start and end).
  const left: number[] = []
  const keyStart: number[] = []
  const keyEnd: number[] = []
  let at = 0
  let items = 0
  const length = body.length
  for (;;) {
    const depth = left.length - 1
    if (++items > limits.items) throw broken(`more than ${limits.items} values in a frame`)
    if (at >= length) throw broken('a frame is cut short')
    const start = at
    const byte = body[at++] as number
    const major = byte >> 5
    const minor = byte & 31
    let value = minor
    if (minor >= 24) {
      if (minor > 27) throw broken('an indefinite or reserved length')
      const bytes = 1 << (minor - 24)
      if (at + bytes > length) throw broken('a frame is cut short')
      value = 0
      for (let i = 0; i < bytes; i++) value = value * 256 + (body[at + i] as number)
      at += bytes
      if (major !== 7) {
        const least = minor === 24 ? 24 : minor === 25 ? 0x100 : minor === 26 ? 0x1_0000 : 0x1_0000_0000
        if (value < least) throw broken('a number is not in its shortest form')
        if (value > Number.MAX_SAFE_INTEGER) throw broken('an integer past 2^53')
      }
    }
    const inMap = depth >= 0 && (keyStart[depth] as number) >= -1
    // In a map an even count of items left means that this one is a key.
    const isKey = inMap && (left[depth] as number) % 2 === 0
    if (isKey && major !== 3) throw broken('a map key is not text')
    switch (major) {
      case 0:
        break
      case 1:
        if (value >= Number.MAX_SAFE_INTEGER) throw broken('an integer past -2^53')
        break
      case 2:
      case 3: {
        if (value > length - at) throw broken('a frame is cut short')
        const text = major === 3
        if (text && !isText(body, at, at + value)) throw broken('text is not UTF-8')
        at += value
        if (isKey) {
          const before = keyStart[depth] as number
          if (before >= 0 && compare(body, before, keyEnd[depth] as number, start, at) >= 0) {
            throw broken('map keys are repeated or out of order')
          }
          keyStart[depth] = start
          keyEnd[depth] = at
        }
        break
      }
      case 4:
      case 5: {
        // Each item has at least one byte, so that no count promises more than the frame holds.
        const count = major === 5 ? value * 2 : value
        if (count > length - at) throw broken('a frame is cut short')
        if (left.length >= limits.depth) throw broken(`nesting passes the limit of ${limits.depth}`)
        if (count > 0) {
          left.push(count)
          keyStart.push(major === 5 ? -1 : -2)
          keyEnd.push(-1)
          continue
        }
        break
      }
      case 6:
        throw broken('a tag')
      default:
        checkSimple(body, start, minor)
    }
    // The item is complete: so may be the containers it ends.
    let open = left.length - 1
    for (; open >= 0; open--) {
      const rest = (left[open] as number) - 1
      left[open] = rest
      if (rest > 0) break
      left.pop()
      keyStart.pop()
      keyEnd.pop()
    }
    if (open < 0) break
  }
  if (at !== length) throw broken('bytes after the end of a frame')
}

function isText(body: Uint8Array, start: number, end: number): boolean {
  if (end - start > 64) return isUtf8(body.subarray(start, end))
  for (let i = start; i < end; i++) if ((body[i] as number) > 0x7f) return isUtf8(body.subarray(start, end))
  return true
}

function checkSimple(body: Uint8Array, start: number, minor: number): void {
  // RFC 8949, 3.3: 20 false, 21 true, 22 null; 25, 26, 27 floats of 16, 32, 64 bits.
  if (minor === 20 || minor === 21 || minor === 22) return
  if (minor < 25) throw broken('a simple value other than false, true and null')
  const bytes = 1 + (1 << (minor - 24))
  const value = decode(body.subarray(start, start + bytes)) as number
  if (!Number.isFinite(value)) throw broken('a float that is not finite')
  if (Number.isSafeInteger(value)) throw broken('an integer sent as a float')
  if (encode(value).length !== bytes) throw broken('a float is not in its shortest form')
}

/** Bytewise order of two encoded keys. */
function compare(body: Uint8Array, aStart: number, aEnd: number, bStart: number, bEnd: number): number {
  const shorter = Math.min(aEnd - aStart, bEnd - bStart)
  for (let i = 0; i < shorter; i++) {
    const difference = (body[aStart + i] as number) - (body[bStart + i] as number)
    if (difference !== 0) return difference
  }
  return aEnd - aStart - (bEnd - bStart)
}
