import { CloudAppError } from '../errors.js'

export interface GateLimits {
  /** Entries inside at once. */
  readonly running: number
  /** Weight inside at once; an entry heavier than all of it enters alone. */
  readonly weight: number
  /** Entries waiting; one more is refused. */
  readonly queued: number
}

/**
 * Lets so many in at once, by number and by weight, in the order they came. What would wait behind too many is refused
 * rather than kept.
 */
export class Gate {
  readonly #limits: GateLimits
  readonly #waiting: { readonly weight: number; readonly enter: () => void }[] = []
  #running = 0
  #weight = 0

  constructor(limits: GateLimits) {
    this.#limits = limits
  }

  get running(): number {
    return this.#running
  }

  get waiting(): number {
    return this.#waiting.length
  }

  /**
   * Enters, at once if there is room (then nothing is returned, so that the usual case costs no turn), or later.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_LIMIT` if too many wait already.
   */
  enter(weight: number): Promise<void> | undefined {
    if (this.#waiting.length === 0 && this.#fits(weight)) {
      this.#running++
      this.#weight += weight
      return undefined
    }
    if (this.#waiting.length >= this.#limits.queued) {
      throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `More than ${this.#limits.queued} operations wait`, {
        details: { limit: 'queued', most: this.#limits.queued },
      })
    }
    return new Promise((enter) => this.#waiting.push({ weight, enter }))
  }

  /** Leaves; `weight` as it was on entering. */
  leave(weight: number): void {
    this.#running--
    this.#weight -= weight
    for (let next = this.#waiting[0]; next !== undefined && this.#fits(next.weight); next = this.#waiting[0]) {
      this.#waiting.shift()
      this.#running++
      this.#weight += next.weight
      next.enter()
    }
  }

  #fits(weight: number): boolean {
    if (this.#running === 0) return true
    return this.#running < this.#limits.running && this.#weight + weight <= this.#limits.weight
  }
}
