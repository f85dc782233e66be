import type { Narrowing } from '../capabilities/caveats.js'
import type { VerifiedToken } from '../capabilities/verify.js'
import { CloudAppError } from '../errors.js'
import type { BrokerState } from './state.js'

/** Blocks whose rates are remembered; the one not used for the longest time is forgotten first. */
const MAX_BUCKETS = 65_536

const SECOND = 1000
const MINUTE = 60_000

/** A rate over time with a burst of one period. */
class Bucket {
  #level: number
  #at: number

  constructor(
    readonly most: number,
    readonly period: number,
    now: number,
  ) {
    this.#level = most
    this.#at = now
  }

  level(now: number): number {
    this.#level = Math.min(this.most, this.#level + ((now - this.#at) * this.most) / this.period)
    this.#at = now
    return this.#level
  }

  take(amount: number, now: number): void {
    this.#level = this.level(now) - amount
  }

  /** ms until `amount` can be taken; what is more than a whole period's worth must wait for a full bucket. */
  wait(amount: number, now: number): number {
    const missing = Math.min(amount, this.most) - this.level(now)
    return missing <= 0 ? 0 : Math.ceil((missing * this.period) / this.most)
  }
}

interface BlockRates {
  readonly operations?: Bucket
  readonly bytes?: Bucket
  readonly pause?: Bucket
}

/** What is left of a chain's limits: of each, the least over its blocks. */
export interface Budget {
  readonly uses?: number
  readonly outputBytes?: number
  readonly pauseMs?: number
}

/**
 * Debits every use on every block of its chain. Use counts and output budgets are durable (state.ts); rates start full
 * with each start of the broker. Blocks are told apart by their signer and id together, so that nobody can use up
 * another holder's limits by choosing the same id.
 */
export class Meter {
  readonly #state: BrokerState
  readonly #rates = new Map<string, BlockRates>()
  readonly #now: () => number

  constructor(state: BrokerState, now: () => number = () => performance.now()) {
    this.#state = state
    this.#now = now
  }

  /** The limits of one chain, to be debited. */
  chain(token: VerifiedToken): ChainMeter {
    const blocks = token.blocks.map(({ id, signer, narrowing }) => ({ key: `${signer} ${id}`, narrowing }))
    const limited = blocks.filter(({ narrowing }) => LIMITED.some((name) => narrowing[name] !== undefined))
    return new ChainMeter(limited, this.#state, (key, narrowing) => this.#of(key, narrowing), this.#now)
  }

  #of(key: string, narrowing: Narrowing): BlockRates {
    const found = this.#rates.get(key)
    if (found !== undefined) {
      this.#rates.delete(key)
      this.#rates.set(key, found)
      return found
    }
    const now = this.#now()
    const { operationsPerSecond, bytesPerSecond, pauseMsPerMinute } = narrowing
    const rates: BlockRates = {
      ...(operationsPerSecond === undefined ? {} : { operations: new Bucket(operationsPerSecond, SECOND, now) }),
      ...(bytesPerSecond === undefined ? {} : { bytes: new Bucket(bytesPerSecond, SECOND, now) }),
      ...(pauseMsPerMinute === undefined ? {} : { pause: new Bucket(pauseMsPerMinute, MINUTE, now) }),
    }
    this.#rates.set(key, rates)
    const oldest = this.#rates.keys().next()
    if (this.#rates.size > MAX_BUCKETS && oldest.done !== true) this.#rates.delete(oldest.value)
    return rates
  }
}

const LIMITED = ['uses', 'outputBytes', 'operationsPerSecond', 'bytesPerSecond', 'pauseMsPerMinute'] as const

interface LimitedBlock {
  readonly key: string
  readonly narrowing: Narrowing
}

export class ChainMeter {
  readonly #blocks: readonly LimitedBlock[]
  readonly #state: BrokerState
  readonly #rates: (key: string, narrowing: Narrowing) => BlockRates
  readonly #now: () => number

  constructor(
    blocks: readonly LimitedBlock[],
    state: BrokerState,
    rates: (key: string, narrowing: Narrowing) => BlockRates,
    now: () => number,
  ) {
    this.#blocks = blocks
    this.#state = state
    this.#rates = rates
    this.#now = now
  }

  /**
   * One operation: refused unless every block has one left, else debited on all of them. A promise only where a count
   * must reach the disk first.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_LIMIT` with `details.limit` and, where waiting helps, `details.retryAfterMs`.
   */
  operation(): Promise<unknown> | undefined {
    if (this.#blocks.length === 0) return undefined
    const now = this.#now()
    for (const { key, narrowing } of this.#blocks) {
      if (narrowing.uses !== undefined && this.#state.usage(key).uses >= narrowing.uses) {
        throw spent('uses', narrowing.uses)
      }
      const { operations, bytes } = this.#rates(key, narrowing)
      const wait = Math.max(operations?.wait(1, now) ?? 0, bytes?.wait(1, now) ?? 0)
      if (wait > 0) throw later(operations === undefined ? 'bytesPerSecond' : 'operationsPerSecond', wait)
    }
    const written: Promise<void>[] = []
    for (const { key, narrowing } of this.#blocks) {
      this.#rates(key, narrowing).operations?.take(1, now)
      if (narrowing.uses === undefined) continue
      const usage = this.#state.usage(key)
      written.push(this.#state.use(key, { ...usage, uses: usage.uses + 1 }))
    }
    return written.length === 0 ? undefined : Promise.all(written)
  }

  /**
   * `bytes` of guest data are about to leave. A rate may be overdrawn by one answer and is then waited for; an output
   * budget never is.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_LIMIT`
   */
  output(bytes: number): Promise<unknown> | undefined {
    if (this.#blocks.length === 0) return undefined
    const now = this.#now()
    for (const { key, narrowing } of this.#blocks) {
      const { outputBytes } = narrowing
      if (outputBytes !== undefined && this.#state.usage(key).outputBytes + bytes > outputBytes) {
        throw spent('outputBytes', outputBytes)
      }
    }
    const written: Promise<void>[] = []
    for (const { key, narrowing } of this.#blocks) {
      this.#rates(key, narrowing).bytes?.take(bytes, now)
      if (narrowing.outputBytes === undefined) continue
      const usage = this.#state.usage(key)
      written.push(this.#state.use(key, { ...usage, outputBytes: usage.outputBytes + bytes }))
    }
    return written.length === 0 ? undefined : Promise.all(written)
  }

  /** How long the VM may be held paused now, in ms; Infinity where nothing limits it. @throws CloudAppError `ERR_CLOUDAPP_LIMIT` */
  pauseBudget(): number {
    const now = this.#now()
    let least = Number.POSITIVE_INFINITY
    for (const { key, narrowing } of this.#blocks) {
      const { pause } = this.#rates(key, narrowing)
      if (pause === undefined) continue
      const level = pause.level(now)
      if (level < 1) throw later('pauseMsPerMinute', Math.max(pause.wait(1, now), 1))
      least = Math.min(least, level)
    }
    return least
  }

  /** The VM was held paused for `ms`. */
  paused(ms: number): void {
    const now = this.#now()
    for (const { key, narrowing } of this.#blocks) this.#rates(key, narrowing).pause?.take(ms, now)
  }

  /** What is left. */
  budget(): Budget {
    const left: { uses?: number; outputBytes?: number; pauseMs?: number } = {}
    const least = (name: keyof Budget, value: number) => {
      left[name] = Math.min(left[name] ?? Number.POSITIVE_INFINITY, Math.max(0, value))
    }
    for (const { key, narrowing } of this.#blocks) {
      const usage = this.#state.usage(key)
      if (narrowing.uses !== undefined) least('uses', narrowing.uses - usage.uses)
      if (narrowing.outputBytes !== undefined) least('outputBytes', narrowing.outputBytes - usage.outputBytes)
      const { pause } = this.#rates(key, narrowing)
      if (pause !== undefined) least('pauseMs', Math.floor(pause.level(this.#now())))
    }
    return left
  }
}

function spent(limit: string, most: number): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_LIMIT', `The capability's ${limit} (${most}) are used up`, {
    details: { limit, most },
  })
}

function later(limit: string, retryAfterMs: number): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_LIMIT', `The capability's ${limit} is reached; again in ${retryAfterMs} ms`, {
    details: { limit, retryAfterMs },
  })
}
