/** Chunks below this are gathered, so that many small writes cross into the native library together. */
const SMALL = 4096
const GATHER = 64 * 1024

/** How long a peer that does not read may hold up a close, in ms. */
const LINGER = 1000

/** Bytes that wait to be written, in order, and who waits for there to be fewer. */
export class OutQueue {
  readonly #highWater: number
  #chunks: Uint8Array[] = []
  /** The first chunk that has not been handed on; those before it are dropped in one go. */
  #first = 0
  #gather: Uint8Array | undefined
  /** Since {@link push} has answered false. */
  #full = false
  #draining: (() => void)[] = []
  #flushed: (() => void) | undefined
  bytes = 0

  /** @param highWater bytes from which on {@link push} answers false */
  constructor(highWater: number) {
    this.#highWater = highWater
  }

  /** False if it is full, until most of it was taken: see {@link drained}. */
  push(chunk: Uint8Array): boolean {
    if (chunk.length > 0) this.#chunks.push(chunk)
    this.bytes += chunk.length
    this.#full ||= this.bytes >= this.#highWater
    return !this.#full
  }

  /** Resolves when there is room again, or the queue was cleared. */
  drained(): Promise<void> {
    return this.#full ? new Promise((resolve) => this.#draining.push(resolve)) : Promise.resolve()
  }

  /** Resolves when all was taken, or after a second. */
  async flushed(): Promise<void> {
    if (this.bytes === 0) return
    await new Promise<void>((resolve) => {
      const linger = setTimeout(resolve, LINGER)
      this.#flushed = () => {
        clearTimeout(linger)
        resolve()
      }
    })
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
    if (this.bytes <= this.#highWater / 4) this.#wake()
  }

  clear(): void {
    this.#chunks = []
    this.#first = 0
    this.bytes = 0
    this.#flushed?.()
    this.#wake()
  }

  #wake(): void {
    this.#full = false
    const draining = this.#draining
    this.#draining = []
    for (const resolve of draining) resolve()
  }
}
