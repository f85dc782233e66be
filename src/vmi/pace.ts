import type { Pace } from './memory.js'

/** Microseconds a call may hold the thread before the event loop turns. */
const SLICE_US = 1000

/** Calls that begin without a look at the clock, after one that looked. */
const UNASKED = 8
/** Microseconds of the first slice of such a call: all of them together take less than one slice. */
const UNASKED_US = 100

/** Lets the event loop turn about each millisecond, whichever call it is that works. */
export class OwnPace implements Pace {
  /** performance.now() when the event loop was last let turn. */
  #turned = 0
  /** Until the event loop turns: somebody else may hold the thread then. */
  #unasked = 0
  /** Whether the last {@link begin} looked at the clock: then anything may have happened since the call before. */
  looked = true

  /**
   * The first slice of a call: {@link UNASKED_US} if another call looked at the clock since the event loop turned. Looking is
   * a system call where the clock is not shared with programs, as in Xen's dom0, and takes longer than a short call.
   */
  begin(): number | Promise<number> {
    this.looked = this.#unasked < 2
    if (this.#unasked === 0) {
      this.#ask()
      return this.next()
    }
    this.#unasked--
    // The last of them looks again.
    return this.#unasked === 0 ? this.next() : UNASKED_US
  }

  /**
   * Before a call that is not cut into slices. True if calls like it are all that ran since one that looked after the handler
   * of SIGBUS: another such system call is spared.
   */
  beginSync(): boolean {
    if (this.#unasked > 1) {
      this.#unasked--
      return true
    }
    this.#ask()
    return false
  }

  #ask(): void {
    if (this.#unasked === 0) {
      setImmediate(() => {
        this.#unasked = 0
      })
    }
    this.#unasked = UNASKED
  }

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
