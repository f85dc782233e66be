import type { PauseScope } from '../vmi/guest.js'

/** A timer can not wait longer than this, in ms. */
export const LONGEST_TIMER = 2 ** 31 - 1

/** A pause that ends by itself. */
export class HeldPause {
  readonly #scope: PauseScope
  readonly #since = performance.now()
  readonly #timer: NodeJS.Timeout
  readonly #onEnd: (ms: number) => void
  #closing: Promise<void> | undefined

  constructor(scope: PauseScope, most: number, onEnd: (ms: number) => void) {
    this.#scope = scope
    this.#onEnd = onEnd
    this.#timer = setTimeout(() => void this.close(), Math.min(most, LONGEST_TIMER))
  }

  /** True from the moment on that the VM is let go. */
  get ending(): boolean {
    return this.#closing !== undefined
  }

  close(): Promise<void> {
    if (this.#closing === undefined) {
      clearTimeout(this.#timer)
      this.#closing = this.#scope.close().finally(() => this.#onEnd(performance.now() - this.#since))
      // A source that died is not paused any more; who closes still learns of it.
      this.#closing.catch(() => undefined)
    }
    return this.#closing
  }
}
