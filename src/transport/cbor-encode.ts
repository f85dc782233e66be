import { encode } from 'cborg'

/** Byte strings from this length on are not copied into the frame but follow it as they are. */
const LARGE = 8192

/** A value nested deeper than this is a ring, or as bad. */
const DEEPEST = 512

/**
 * Deterministic CBOR (RFC 8949, 4.2.1) of the frame data model, as cborg with `rfc8949EncodeOptions` writes it, in parts:
 * long byte strings (guest memory) stay where they are instead of being copied twice. The parts are sent one after the other.
 */
export class PartsEncoder {
  readonly parts: Uint8Array[] = []
  length = 0
  #bytes: Buffer
  #at: number

  /** The first part begins with `reserve` bytes for the caller to fill. */
  constructor(reserve: number) {
    this.#bytes = Buffer.allocUnsafe(512)
    this.#at = reserve
    this.length = reserve
  }

  /** @throws TypeError for a value outside the model. */
  value(value: unknown, depth = 0): void {
    if (depth > DEEPEST) throw new TypeError('nested too deeply')
    if (typeof value === 'string') this.#text(value)
    else if (typeof value === 'number') this.#number(value)
    else if (typeof value === 'boolean') this.#byte(value ? 0xf5 : 0xf4)
    else if (value === null) this.#byte(0xf6)
    else if (typeof value !== 'object') throw new TypeError(`a ${typeof value} has no form`)
    else if (value instanceof Uint8Array) this.#blob(value)
    else if (Array.isArray(value)) this.#array(value, depth)
    else this.#map(value as Record<string, unknown>, depth)
  }

  /** All parts, once everything is in. */
  done(): Uint8Array[] {
    this.#cut()
    return this.parts
  }

  #array(value: readonly unknown[], depth: number): void {
    this.#head(4, value.length)
    for (let i = 0; i < value.length; i++) this.value(value[i], depth + 1)
  }

  #map(value: Record<string, unknown>, depth: number): void {
    const prototype = Object.getPrototypeOf(value)
    if (prototype !== Object.prototype && prototype !== null) throw new TypeError('an object of a class has no form')
    const entries = Object.keys(value)
    this.#head(5, entries.length)
    if (entries.length > 1) entries.sort(compareKeys)
    for (const key of entries) {
      this.#text(key)
      this.value(value[key], depth + 1)
    }
  }

  #number(value: number): void {
    if (!Number.isSafeInteger(value)) this.#raw(encode(value))
    else if (value >= 0) this.#head(0, value)
    else this.#head(1, -1 - value)
  }

  #text(value: string): void {
    if (value.length >= 24 || !this.#name(value)) this.#longText(value)
  }

  /** Names, mostly: short ASCII is written as it stands. False if it is none. */
  #name(value: string): boolean {
    const { length } = value
    this.#room(length + 1)
    const start = this.#at
    this.#bytes[start] = 0x60 | length
    for (let i = 0; i < length; i++) {
      const code = value.charCodeAt(i)
      if (code > 0x7f) return false
      this.#bytes[start + 1 + i] = code
    }
    this.#at += length + 1
    this.length += length + 1
    return true
  }

  #longText(value: string): void {
    const length = Buffer.byteLength(value)
    this.#head(3, length)
    this.#room(length)
    this.#bytes.write(value, this.#at)
    this.#at += length
    this.length += length
  }

  #blob(value: Uint8Array): void {
    this.#head(2, value.length)
    if (value.length < LARGE) {
      this.#raw(value)
      return
    }
    this.#cut()
    this.parts.push(value)
    this.length += value.length
  }

  #raw(value: Uint8Array): void {
    this.#room(value.length)
    this.#bytes.set(value, this.#at)
    this.#at += value.length
    this.length += value.length
  }

  #byte(value: number): void {
    this.#room(1)
    this.#bytes[this.#at++] = value
    this.length++
  }

  #head(major: number, value: number): void {
    this.#room(9)
    const bytes = this.#bytes
    const start = this.#at
    const first = major << 5
    if (value < 24) {
      bytes[this.#at++] = first | value
    } else if (value < 0x100) {
      bytes[this.#at++] = first | 24
      bytes[this.#at++] = value
    } else if (value < 0x1_0000) {
      bytes[this.#at++] = first | 25
      this.#at = bytes.writeUInt16BE(value, this.#at)
    } else if (value < 0x1_0000_0000) {
      bytes[this.#at++] = first | 26
      this.#at = bytes.writeUInt32BE(value, this.#at)
    } else {
      bytes[this.#at++] = first | 27
      this.#at = bytes.writeBigUInt64BE(BigInt(value), this.#at)
    }
    this.length += this.#at - start
  }

  #room(more: number): void {
    if (this.#at + more <= this.#bytes.length) return
    const bytes = Buffer.allocUnsafe(Math.max(this.#at + more, this.#bytes.length * 2))
    this.#bytes.copy(bytes, 0, 0, this.#at)
    this.#bytes = bytes
  }

  #cut(): void {
    if (this.#at === 0) return
    this.parts.push(this.#bytes.subarray(0, this.#at))
    this.#bytes = Buffer.allocUnsafe(64)
    this.#at = 0
  }
}

/** Order of the encoded keys: the head comes first, and it grows with the length. */
function compareKeys(a: string, b: string): number {
  const x = Buffer.from(a)
  const y = Buffer.from(b)
  return x.length - y.length || Buffer.compare(x, y)
}
