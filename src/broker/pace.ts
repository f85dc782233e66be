import { LONG_US, type Party, type Turns } from '../transport/turns.js'
import type { Pace } from '../vmi/memory.js'

/** Microseconds of the first slice: what is done in it was a short operation. */
const FIRST_US = 100

/** When an operation may work: for a moment at first, among the short ones; then, or if it is `long`, among the long ones. */
export class TurnPace implements Pace {
  readonly #turns: Turns
  readonly #party: Party
  readonly #signal: AbortSignal
  #long: boolean
  /** performance.now() at the end of the slice. */
  #until = 0

  constructor(turns: Turns, party: Party, signal: AbortSignal, long = false) {
    this.#turns = turns
    this.#party = party
    this.#signal = signal
    this.#long = long
  }

  next(): number | Promise<number> {
    const left = Math.floor((this.#until - performance.now()) * 1000)
    if (left > 0) return left
    if (this.#long) return this.#turns.long(this.#party, this.#signal).then(() => this.#begin(LONG_US))
    this.#long = true
    const wait = this.#turns.short(this.#party, this.#signal)
    return wait === undefined ? this.#begin(FIRST_US) : wait.then(() => this.#begin(FIRST_US))
  }

  #begin(slice: number): number {
    this.#until = performance.now() + slice / 1000
    return slice
  }
}
