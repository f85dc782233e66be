import { profileError } from '../errors.js'

/** Fetches `length` bytes at `at` of the window, at most {@link CHUNK}; what can not be read is zero. */
export type Fetch = (at: number, length: number) => Uint8Array

/** Bytes asked for at once. */
export const CHUNK = 1024 * 1024

/**
 * The kernel image as the parser sees it: a bounded range of bytes, fetched in chunks from the process that may read
 * the guest, each chunk once.
 */
export class Window {
  /** Bytes of the window; positions are below it. */
  readonly size: number
  readonly #fetch: Fetch
  readonly #chunks = new Map<number, Uint8Array>()

  constructor(size: number, fetch: Fetch) {
    this.size = size
    this.#fetch = fetch
  }

  /** True if the range lies inside. */
  holds(at: number, length: number): boolean {
    return Number.isInteger(at) && at >= 0 && length >= 0 && at + length <= this.size
  }

  /** Bytes of a range. `part` names what is read there, for the error. @throws ERR_CLOUDAPP_PROFILE if outside */
  read(at: number, length: number, part: string): Buffer {
    if (!this.holds(at, length))
      throw profileError(part, `${length} bytes at image offset ${at} are outside the ${this.size} bytes of the image`)
    const first = Math.floor(at / CHUNK)
    const last = Math.floor((at + Math.max(length, 1) - 1) / CHUNK)
    if (first === last) {
      const chunk = this.#chunk(first)
      return Buffer.from(chunk.buffer, chunk.byteOffset + (at - first * CHUNK), length)
    }
    const out = Buffer.alloc(length)
    for (let index = first; index <= last; index++) {
      const start = index * CHUNK
      const from = Math.max(at, start)
      const to = Math.min(at + length, start + CHUNK)
      out.set(this.#chunk(index).subarray(from - start, to - start), from - at)
    }
    return out
  }

  /** Bytes of a short range, fetched alone: for looking at many places far from each other. */
  probe(at: number, length: number): Uint8Array {
    return this.holds(at, length) ? this.#fetch(at, length) : new Uint8Array(0)
  }

  #chunk(index: number): Uint8Array {
    let chunk = this.#chunks.get(index)
    if (chunk === undefined) {
      const start = index * CHUNK
      chunk = this.#fetch(start, Math.min(CHUNK, this.size - start))
      this.#chunks.set(index, chunk)
    }
    return chunk
  }
}
