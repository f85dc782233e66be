import type { Narrowing } from '../capabilities/caveats.js'
import type { Budget, RateLeft } from '../capabilities/delegation.js'
import type { VerifiedToken } from '../capabilities/verify.js'
import { CloudAppError } from '../errors.js'
import type { BrokerState, CountedBlock } from './state.js'

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

  left(now: number): RateLeft {
    return { left: Math.floor(this.level(now)), most: this.most, retryAfterMs: this.wait(1, now) }
  }
}

interface BlockRates {
  readonly operations?: Bucket
  readonly bytes?: Bucket
  readonly pause?: Bucket
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
    const root = `${token.issuer} ${token.ids[0]}`
    // A block can not be used longer than those before it.
    let until = Number.POSITIVE_INFINITY
    const blocks = token.blocks.map(({ id, signer, narrowing }): LimitedBlock => {
      until = Math.min(until, narrowing.expires ?? until)
      return { key: `${signer} ${id}`, root, until, narrowing }
    })
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

interface LimitedBlock extends CountedBlock {
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
    for (const block of this.#blocks) {
      const { key, narrowing } = block
      const counted = narrowing.uses !== undefined || narrowing.outputBytes !== undefined
      if (counted && !this.#state.hasRoom(block)) {
        throw new CloudAppError('ERR_CLOUDAPP_LIMIT', 'Too many blocks with counts of their own come from one token', {
          details: { limit: 'blocks' },
        })
      }
      if (narrowing.uses !== undefined && this.#state.usage(key).uses >= narrowing.uses) {
        throw spent('uses', narrowing.uses)
      }
      const { operations, bytes } = this.#rates(key, narrowing)
      const forOperation = operations?.wait(1, now) ?? 0
      const forBytes = bytes?.wait(1, now) ?? 0
      if (forOperation > 0 && forOperation >= forBytes) throw later('operationsPerSecond', forOperation)
      if (forBytes > 0) throw later('bytesPerSecond', forBytes)
    }
    const written: Promise<void>[] = []
    for (const block of this.#blocks) {
      const { key, narrowing } = block
      this.#rates(key, narrowing).operations?.take(1, now)
      if (narrowing.uses === undefined) continue
      const usage = this.#state.usage(key)
      written.push(this.#state.use(block, { ...usage, uses: usage.uses + 1 }))
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
    for (const block of this.#blocks) {
      const { key, narrowing } = block
      this.#rates(key, narrowing).bytes?.take(bytes, now)
      if (narrowing.outputBytes === undefined) continue
      const usage = this.#state.usage(key)
      written.push(this.#state.use(block, { ...usage, outputBytes: usage.outputBytes + bytes }))
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

  /** What is left; costs nothing. */
  budget(timeMs: number): Budget {
    const now = this.#now()
    let budget: Budget = { timeMs: Math.max(0, timeMs) }
    for (const { key, narrowing } of this.#blocks) {
      const usage = this.#state.usage(key)
      const rates = this.#rates(key, narrowing)
      const mine = {
        uses: narrowing.uses === undefined ? undefined : Math.max(0, narrowing.uses - usage.uses),
        outputBytes:
          narrowing.outputBytes === undefined ? undefined : Math.max(0, narrowing.outputBytes - usage.outputBytes),
        operations: rates.operations?.left(now),
        bytes: rates.bytes?.left(now),
        pauseMs: rates.pause?.left(now),
      }
      budget = {
        ...budget,
        ...lesser('uses', budget.uses, mine.uses),
        ...lesser('outputBytes', budget.outputBytes, mine.outputBytes),
        ...lesserRate('operations', budget.operations, mine.operations),
        ...lesserRate('bytes', budget.bytes, mine.bytes),
        ...lesserRate('pauseMs', budget.pauseMs, mine.pauseMs),
      }
    }
    return budget
  }
}

function lesser<K extends string>(name: K, a: number | undefined, b: number | undefined): { [P in K]?: number } {
  if (b === undefined) return {}
  return { [name]: Math.min(a ?? b, b) } as { [P in K]?: number }
}

/** Of two blocks' rates, the one that has to be waited for longer, then the one with less left. */
function lesserRate<K extends string>(
  name: K,
  a: RateLeft | undefined,
  b: RateLeft | undefined,
): { [P in K]?: RateLeft } {
  if (b === undefined) return {}
  const first =
    a === undefined || b.retryAfterMs > a.retryAfterMs || (b.retryAfterMs === a.retryAfterMs && b.left < a.left)
  return { [name]: first ? b : a } as { [P in K]?: RateLeft }
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
