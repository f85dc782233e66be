import { isUtf8 } from 'node:buffer'
import { decode, encode, rfc8949EncodeOptions } from 'cborg'
import { Malformed } from './dimensions.js'

/** Deepest nesting in a token: payload → caveats → memory → ranges → pair. */
const MAX_DEPTH = 6

/**
 * Encodes by RFC 8949, 4.2.1 (core deterministic): shortest lengths, definite sizes, map keys in bytewise order.
 */
export function encodeStrict(value: unknown): Uint8Array {
  return encode(value, rfc8949EncodeOptions)
}

/**
 * Decodes the one encoding {@link encodeStrict} gives, restricted to unsigned integers, byte strings, text, arrays and
 * maps with unsigned keys. Anything else is refused: a longer spelling, another order, a repeated key, indefinite
 * lengths, tags, floats, negative numbers, simple values, text that is no UTF-8, bytes after the end, deep nesting. Maps
 * come as `Map`, numbers from 2^53 as bigint.
 *
 * @throws Malformed
 */
export function decodeStrict(bytes: Uint8Array): unknown {
  const end = scan(bytes, 0, 0)
  if (end !== bytes.length) throw new Malformed('bytes after the end')
  try {
    return decode(bytes, { useMaps: true, strict: true, allowIndefinite: false, rejectDuplicateMapKeys: true })
  } catch (cause) {
    throw new Malformed(cause instanceof Error ? cause.message : 'not CBOR')
  }
}

// The scan comes first and in a loop of its own, because the decoder recurses, allocates what a header promises, and
// does not look at the order of keys. Each byte is looked at once; the depth bounds the recursion.
function scan(bytes: Uint8Array, at: number, depth: number): number {
  if (depth > MAX_DEPTH) throw new Malformed('nested too deep')
  const initial = byteAt(bytes, at)
  const major = initial >>> 5
  const head = headLength(initial & 31)
  const value = argument(bytes, at, head)
  let next = at + head
  switch (major) {
    case 0:
      return next
    case 2:
    case 3: {
      const end = next + value
      if (end > bytes.length) throw new Malformed('cut off')
      if (major === 3 && !isUtf8(bytes.subarray(next, end))) throw new Malformed('text that is no UTF-8')
      return end
    }
    case 4:
      // Each item takes a byte at least.
      if (value > bytes.length - next) throw new Malformed('cut off')
      for (let i = 0; i < value; i++) next = scan(bytes, next, depth + 1)
      return next
    case 5:
      return scanMap(bytes, next, value, depth)
    default:
      throw new Malformed('a type that has no place in a token')
  }
}

function scanMap(bytes: Uint8Array, start: number, pairs: number, depth: number): number {
  if (pairs > bytes.length - start) throw new Malformed('cut off')
  let next = start
  let before = -1
  for (let i = 0; i < pairs; i++) {
    const initial = byteAt(bytes, next)
    // Keys of the format are below 24: one byte each.
    if (initial > 23) throw new Malformed('a key that is no small number')
    if (initial <= before) throw new Malformed('keys out of order')
    before = initial
    next = scan(bytes, next + 1, depth + 1)
  }
  return next
}

function headLength(info: number): number {
  if (info < 24) return 1
  if (info === 24) return 2
  if (info === 25) return 3
  if (info === 26) return 5
  if (info === 27) return 9
  throw new Malformed('an indefinite or reserved length')
}

/** The number in a header, which must be in its shortest form. Exact below 2^53; larger ones are only ever values. */
function argument(bytes: Uint8Array, at: number, head: number): number {
  if (head === 1) return byteAt(bytes, at) & 31
  if (at + head > bytes.length) throw new Malformed('cut off')
  let value = 0
  for (let i = 1; i < head; i++) value = value * 256 + byteAt(bytes, at + i)
  const least = head === 2 ? 24 : head === 3 ? 0x100 : head === 5 ? 0x1_0000 : 0x1_0000_0000
  if (value < least) throw new Malformed('a number in a longer form than needed')
  return value
}

function byteAt(bytes: Uint8Array, at: number): number {
  const byte = bytes[at]
  if (byte === undefined) throw new Malformed('cut off')
  return byte
}
