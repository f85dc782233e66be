/** Pieces below this are gathered into chunks of that size: each kept by itself would cost more than what is in it. */
const SMALL = 4 * 1024

/**
 * Keeps a list of pieces that came from a peer from holding on to much more memory than there is in them, however the peer
 * cut them.
 */
export class Gather {
  #memory = new Uint8Array()
  #used = 0

  /** Adds a piece to the end of a list to which nobody else adds. */
  add(chunks: Uint8Array[], piece: Uint8Array): void {
    if (piece.length === 0) return
    const last = chunks.at(-1)
    if (last === undefined || piece.length >= SMALL) {
      // A piece holds on to all of the memory it came in.
      chunks.push(piece.length >= piece.buffer.byteLength / 4 ? piece : piece.slice())
      return
    }
    let start = last.byteOffset
    if (last.buffer !== this.#memory.buffer || this.#used + piece.length > SMALL) {
      this.#memory = new Uint8Array(SMALL)
      this.#used = start = 0
      chunks.push(piece)
    }
    this.#memory.set(piece, this.#used)
    this.#used += piece.length
    chunks[chunks.length - 1] = this.#memory.subarray(start, this.#used)
  }
}
