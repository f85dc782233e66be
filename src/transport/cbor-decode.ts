import { decode } from 'cborg'

/**
 * The value of a frame's body that `checkCanonical` has accepted: nothing is checked here again. Nested no deeper than that
 * allowed.
 *
 * @param own true if nobody else will use the memory of `body`: byte strings are then views of it and not copies.
 */
export function decodeChecked(body: Uint8Array, own: boolean): unknown {
  return new Decoder(body, own).value()
}

class Decoder {
  readonly #body: Buffer
  readonly #own: boolean
  #at = 0

  constructor(body: Uint8Array, own: boolean) {
    this.#body = Buffer.from(body.buffer, body.byteOffset, body.length)
    this.#own = own
  }

  value(): unknown {
    const start = this.#at
    const byte = this.#body[this.#at++] as number
    const major = byte >> 5
    if (major === 7) return this.#simple(byte, start)
    const count = this.#count(byte & 31)
    switch (major) {
      case 0:
        return count
      case 1:
        return -1 - count
      case 2:
        return this.#bytes(count)
      case 3:
        return this.#text(count)
      case 4: {
        const array = new Array<unknown>(count)
        for (let i = 0; i < count; i++) array[i] = this.value()
        return array
      }
      default:
        return this.#map(count)
    }
  }

  #count(minor: number): number {
    const at = this.#at
    switch (minor) {
      case 24:
        this.#at += 1
        return this.#body[at] as number
      case 25:
        this.#at += 2
        return this.#body.readUInt16BE(at)
      case 26:
        this.#at += 4
        return this.#body.readUInt32BE(at)
      case 27:
        this.#at += 8
        return this.#body.readUInt32BE(at) * 0x1_0000_0000 + this.#body.readUInt32BE(at + 4)
      default:
        return minor
    }
  }

  #bytes(length: number): Uint8Array {
    const at = this.#at
    this.#at += length
    const { buffer, byteOffset } = this.#body
    const view = new Uint8Array(buffer, byteOffset + at, length)
    return this.#own ? view : view.slice()
  }

  #text(length: number): string {
    const at = this.#at
    this.#at += length
    return this.#body.toString('utf8', at, at + length)
  }

  #map(count: number): Record<string, unknown> {
    const map: Record<string, unknown> = {}
    for (let i = 0; i < count; i++) {
      const key = this.value() as string
      const value = this.value()
      // An assignment would call the setter of Object.prototype.
      if (key === '__proto__')
        Object.defineProperty(map, key, { value, enumerable: true, configurable: true, writable: true })
      else map[key] = value
    }
    return map
  }

  #simple(byte: number, start: number): unknown {
    if (byte === 0xf4) return false
    if (byte === 0xf5) return true
    if (byte === 0xf6) return null
    this.#at = start + 1 + (1 << ((byte & 31) - 24))
    return decode(this.#body.subarray(start, this.#at))
  }
}
