/** Pieces below this are gathered into chunks of that size: each piece kept by itself would cost more than what is in it. */
const SMALL = 4 * 1024
const GATHER = 16 * 1024

/** Bytes that came and were not read yet, in order. What it holds on to is bounded by a small multiple of {@link bytes}. */
export class InQueue {
  readonly #chunks: Uint8Array[] = []
  /** The last chunk's memory, where that has room for more. */
  #tail: { readonly memory: Uint8Array; used: number } | undefined
  bytes = 0

  push(piece: Uint8Array): void {
    if (piece.length === 0) return
    this.bytes += piece.length
    if (piece.length >= SMALL) {
      this.#tail = undefined
      // A piece holds on to all of the memory it came in.
      const own = piece.length >= piece.buffer.byteLength / 4
      this.#chunks.push(own ? piece : piece.slice())
      return
    }
    const tail = this.#tail
    if (tail !== undefined && tail.used + piece.length <= GATHER) {
      const last = this.#chunks.length - 1
      const before = this.#chunks[last] as Uint8Array
      tail.memory.set(piece, tail.used)
      tail.used += piece.length
      this.#chunks[last] = tail.memory.subarray(before.byteOffset, tail.used)
      return
    }
    const memory = new Uint8Array(GATHER)
    memory.set(piece)
    this.#tail = { memory, used: piece.length }
    this.#chunks.push(memory.subarray(0, piece.length))
  }

  /** The oldest bytes, or undefined if there are none. */
  shift(): Uint8Array | undefined {
    const chunk = this.#chunks.shift()
    if (chunk === undefined) return undefined
    // What has been given away is not written to again.
    if (this.#chunks.length === 0) this.#tail = undefined
    this.bytes -= chunk.length
    return chunk
  }
}
