/** A seeded generator of 32-bit numbers (splitmix32): the same seed gives the same guest on every machine. */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = seed >>> 0
  }

  /** A number of 32 random bits. */
  u32(): number {
    this.#state = (this.#state + 0x9e37_79b9) >>> 0
    let z = this.#state
    z = Math.imul(z ^ (z >>> 16), 0x21f0_aaad)
    z = Math.imul(z ^ (z >>> 15), 0x735a_2d97)
    return (z ^ (z >>> 15)) >>> 0
  }

  /** An integer of `[0, below)`. */
  below(below: number): number {
    return this.u32() % below
  }

  bytes(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => this.u32() & 0xff)
  }

  /** The items in a random order, in a new array. */
  shuffled<T>(items: readonly T[]): T[] {
    const out = [...items]
    for (let i = out.length - 1; i > 0; i--) {
      const j = this.below(i + 1)
      const swap = out[i] as T
      out[i] = out[j] as T
      out[j] = swap
    }
    return out
  }

  /** A generator of its own for one purpose, so that a new draw in one place shifts no other. */
  fork(name: string): Random {
    let hash = this.#state
    for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x0100_0193) >>> 0
    return new Random(hash)
  }
}
