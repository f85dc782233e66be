import type { Pace } from './memory.js'

/** Microseconds a call may hold the thread before the event loop turns. */
const SLICE_US = 1000

/** Lets the event loop turn about each millisecond, whichever call it is that works. */
export class OwnPace implements Pace {
  /** performance.now() when the event loop was last let turn. */
  #turned = 0

  next(): number | Promise<number> {
    const left = SLICE_US - Math.ceil((performance.now() - this.#turned) * 1000)
    return left > 0 ? left : this.#turn()
  }

  async #turn(): Promise<number> {
    await new Promise<void>((resolve) => setImmediate(resolve))
    this.#turned = performance.now()
    return SLICE_US
  }
}
