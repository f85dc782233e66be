import { AsyncLocalStorage } from 'node:async_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Delegation } from '../capabilities/delegation.js'
import type { Right } from '../capabilities/rights.js'
import type { HeldDelegation } from './delegations.js'
import type { Loop } from './every.js'
import type { HealthState } from './health.js'

/** A handler that failed is tried again after so many ms, doubled up to the longest. */
const FIRST_WAIT = 1000
const LONGEST_WAIT = 60_000
/** A handler that worked so long starts over with the first wait. */
const SETTLED = 60_000
/** How long closing waits for handlers to return, in ms. */
const PATIENCE = 5000

interface Handler {
  readonly rights: readonly Right[]
  readonly run: (vm: Delegation<Right>) => unknown
}

/** Which handler's call the code that runs now belongs to. */
export interface HandlerContext {
  readonly held: HeldDelegation
  /** Its name among the sources of failures. */
  readonly source: string
  /** Scan loops it has begun: they end with its failure. */
  readonly loops: Set<Loop>
}

/**
 * The author's handlers, each called for every delegation that has its rights, and again after a pause when it failed. What
 * goes wrong becomes health state.
 */
export class Handlers {
  readonly #health: HealthState
  readonly #closed: AbortSignal
  readonly #handlers: Handler[] = []
  readonly #context = new AsyncLocalStorage<HandlerContext>()
  readonly #working = new Set<Promise<void>>()

  /** @param closed - Fires when no handler is to be called any more. */
  constructor(health: HealthState, closed: AbortSignal) {
    this.#health = health
    this.#closed = closed
  }

  /** The context of the handler whose code runs now. */
  get context(): HandlerContext | undefined {
    return this.#context.getStore()
  }

  /** Adds a handler and calls it for what is held already. */
  add(handler: Handler, held: Iterable<HeldDelegation>): void {
    this.#handlers.push(handler)
    for (const one of held) this.#start(handler, one)
  }

  /** Calls the handlers that ask for no more than this delegation has. */
  start(held: HeldDelegation): void {
    for (const handler of this.#handlers) this.#start(handler, held)
  }

  /** Resolves when all have returned, or when they were waited for long enough. */
  async settled(): Promise<void> {
    await Promise.race([Promise.all(this.#working), sleep(PATIENCE, undefined, { ref: false })])
  }

  #start(handler: Handler, held: HeldDelegation): void {
    if (!handler.rights.every((right) => held.delegation.has(right))) return
    const work = this.#supervise(handler, held).finally(() => this.#working.delete(work))
    this.#working.add(work)
  }

  async #supervise(handler: Handler, held: HeldDelegation): Promise<void> {
    const { delegation } = held
    const source = `handler ${this.#handlers.indexOf(handler)} ${delegation.identity.uuid}`
    let wait = FIRST_WAIT
    while (!delegation.closed.aborted && !this.#closed.aborted) {
      const begun = performance.now()
      const loops = new Set<Loop>()
      try {
        await this.#context.run({ held, source, loops }, async () => handler.run(delegation))
        this.#health.ok(source)
        return
      } catch (error) {
        for (const loop of loops) loop.fail(error)
        // The delegation ended under it: nothing is wrong with the handler.
        if (delegation.closed.aborted || this.#closed.aborted) break
        this.#health.fail(source, error, delegation.identity)
        if (performance.now() - begun > SETTLED) wait = FIRST_WAIT
        await pause(wait, delegation.closed, this.#closed)
        wait = Math.min(wait * 2, LONGEST_WAIT)
      }
    }
    this.#health.ok(source)
  }
}

async function pause(ms: number, ...signals: AbortSignal[]): Promise<void> {
  await sleep(ms, undefined, { signal: AbortSignal.any(signals), ref: false }).catch(() => undefined)
}
