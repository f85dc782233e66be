/** Chunks below this are gathered, so that many small writes cross into the native library together. */
const SMALL = 4096
const GATHER = 64 * 1024

/** Bytes that wait to be written, in order. */
export class OutQueue {
  #chunks: Uint8Array[] = []
  /** The first chunk that has not been handed on; those before it are dropped in one go. */
  #first = 0
  #gather: Uint8Array | undefined
  bytes = 0

  push(chunk: Uint8Array): void {
    if (chunk.length === 0) return
    this.#chunks.push(chunk)
    this.bytes += chunk.length
  }

  /** What to write next, as one piece; undefined if there is nothing. Ask again after {@link taken}. */
  next(): Uint8Array | undefined {
    const chunk = this.#chunks[this.#first]
    if (chunk === undefined) return undefined
    const after = this.#chunks[this.#first + 1]
    if (chunk.length >= SMALL || after === undefined) return chunk
    this.#gather ??= new Uint8Array(GATHER)
    let at = 0
    let index = this.#first
    for (; index < this.#chunks.length; index++) {
      const part = this.#chunks[index] as Uint8Array
      if (at + part.length > GATHER) break
      this.#gather.set(part, at)
      at += part.length
    }
    return this.#gather.subarray(0, at)
  }

  /** So many bytes of what {@link next} gave have been written. */
  taken(count: number): void {
    this.bytes -= count
    let left = count
    while (left > 0) {
      const chunk = this.#chunks[this.#first] as Uint8Array
      if (left < chunk.length) {
        this.#chunks[this.#first] = chunk.subarray(left)
        break
      }
      left -= chunk.length
      this.#first++
    }
    if (this.#first === this.#chunks.length) this.clear()
    else if (this.#first > 1024) {
      this.#chunks = this.#chunks.slice(this.#first)
      this.#first = 0
    }
  }

  clear(): void {
    this.#chunks = []
    this.#first = 0
    this.bytes = 0
  }
}
