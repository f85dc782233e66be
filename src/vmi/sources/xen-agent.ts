import { CloudAppError } from '../../errors.js'
import type { Shim } from '../../native/abi.js'
import { findEventAgent } from '../../native/find.js'
import { compileProgram, TRAPS } from '../events/compile.js'
import type { Captures, EventProgram, Trap } from '../events/program.js'
import { aborted, checkSubscribe, EventQueue } from '../events/queue.js'
import type { EventCounts, EventSource, EventStream, EventSupport, SubscribeOptions } from '../events/source.js'
import { AgentProcess, FRAME } from './agent-process.js'
import { AgentRing } from './agent-ring.js'
import { runRecovery } from './xen-recover.js'

/** enum ca_trap_support of cloudapp_events.h. */
const SUPPORT_INT3 = 1 << 16
const SUPPORT_DESCRIPTOR = 1 << 17

interface Running {
  readonly process: AgentProcess
  readonly ring: AgentRing
}

/**
 * The event agent of one domain, as this process uses it: started when first needed, one for all subscriptions and pauses,
 * ended with the VM handle. If it is killed, what it left in the guest is restored by a run of `--recover`, the
 * subscriptions end with `ERR_CLOUDAPP_SOURCE`, and the next use starts another.
 */
export class XenAgent implements EventSource {
  readonly #shim: Shim
  readonly #args: readonly string[]
  readonly #recovers: boolean
  #running: Promise<Running> | undefined
  #recovery: Promise<void> = Promise.resolve()
  #closed: CloudAppError | undefined

  /** @param what the domain's number; `synthetic`: no domain, events are made by {@link synthetic} */
  constructor(shim: Shim, what: number | 'synthetic') {
    this.#shim = shim
    this.#recovers = what !== 'synthetic'
    this.#args = what === 'synthetic' ? ['0', '--synthetic'] : [String(what)]
  }

  async subscribe<const C extends Captures = Record<never, never>>(
    program: EventProgram<C>,
    options: SubscribeOptions = {},
  ): Promise<EventStream<C>> {
    return (await this.#subscribe(program as EventProgram, options)) as unknown as EventStream<C>
  }

  async support(): Promise<EventSupport> {
    const { process } = await this.#get()
    const bits = await process.request(FRAME.probe)
    const traps = (Object.keys(TRAPS) as Trap['kind'][]).filter((kind) => (bits & (1 << TRAPS[kind])) !== 0)
    if ((bits & SUPPORT_INT3) !== 0) return { traps, breakpoints: 'int3' }
    if ((bits & SUPPORT_DESCRIPTOR) !== 0) return { traps, breakpoints: 'descriptor' }
    return { traps }
  }

  /** Counted: each wants one {@link unpause}. The agent undoes them when this process dies. */
  async pause(): Promise<AgentProcess> {
    const { process } = await this.#get()
    await process.request(FRAME.pause)
    return process
  }

  /** Makes events of a subscription without a guest, for measurements: `rate` a second, 0 for as fast as it goes. @internal */
  async synthetic(stream: EventStream, events: number, rate: number): Promise<void> {
    const { process } = await this.#get()
    const number = BigInt(numbers.get(stream as EventQueue) ?? 0)
    const words = BigUint64Array.of(number, BigInt(events), BigInt(rate))
    await process.request(FRAME.synthetic, new Uint8Array(words.buffer))
  }

  /** The agent's process, if it runs; for tests that kill it. @internal */
  async pid(): Promise<number | undefined> {
    return this.#running === undefined ? undefined : (await this.#running).process.pid
  }

  /** Ends the agent, which puts everything back first. Idempotent. */
  async close(reason: CloudAppError): Promise<void> {
    if (this.#closed !== undefined) return
    this.#closed = reason
    const running = await this.#running?.catch(() => undefined)
    if (running !== undefined) {
      const ending = running.process.close()
      const ends = running.ring.queues().map((queue) => queue.end(reason))
      try {
        await Promise.all([ending, ...ends])
      } finally {
        running.ring.close()
      }
    }
    await this.#recovery
  }

  async #subscribe(program: EventProgram, options: SubscribeOptions): Promise<EventQueue> {
    const { buffer } = checkSubscribe(options)
    const { signal } = options
    const compiled = compileProgram(program)
    const { process, ring } = await this.#get()
    const queue = await ring.claim(
      () => process.request(FRAME.subscribe, new Uint8Array(compiled.words.buffer)),
      (number) => {
        const made = new EventQueue(
          compiled,
          buffer,
          () => ring.counts(number),
          () => unsubscribe(number),
        )
        numbers.set(made, number)
        process.ref()
        return made
      },
    )
    const stop = () => void queue.end(aborted(signal as AbortSignal)).catch(() => {})
    signal?.addEventListener('abort', stop, { once: true })
    queue.closed.addEventListener('abort', () => signal?.removeEventListener('abort', stop), { once: true })
    if (signal?.aborted === true) {
      await queue.close()
      throw aborted(signal)
    }
    return queue

    async function unsubscribe(number: number): Promise<EventCounts> {
      process.unref()
      // What ended with the agent needs no asking.
      if (process.alive) {
        const word = new Uint8Array(4)
        new DataView(word.buffer).setUint32(0, number, true)
        await process.request(FRAME.unsubscribe, word).catch((error: unknown) => {
          if (process.alive) throw error
        })
      }
      const last = ring.counts(number)
      ring.release(number)
      return last
    }
  }

  async #get(): Promise<Running> {
    if (this.#closed !== undefined) throw this.#closed
    await this.#recovery
    if (this.#running !== undefined) return this.#running
    const running = this.#start()
    this.#running = running
    running.catch(() => {
      if (this.#running === running) this.#running = undefined
    })
    return running
  }

  async #start(): Promise<Running> {
    const path = findEventAgent()
    const { ring, started: process } = await AgentRing.create(
      this.#shim,
      (fd) => AgentProcess.start(path, this.#args, fd),
      (reason) => void this.#lost({ process, ring }, reason, false),
    )
    process.onWake = () => ring.wake()
    // The producer wakes who sleeps, and one sleeps who has looked and found nothing.
    ring.wake()
    process.onEnd = (reason, gone) => void this.#lost({ process, ring }, reason, gone)
    return { process, ring }
  }

  /** The agent has ended, or is of no more use. */
  #lost({ process, ring }: Running, reason: CloudAppError, gone: boolean): Promise<void> {
    this.#running = undefined
    this.#recovery = this.#recovery.then(async () => {
      await process.close().catch(() => {})
      ring.drainAll()
      const end = gone || !this.#recovers ? reason : await recover(this.#args, reason)
      await Promise.allSettled(ring.queues().map((queue) => queue.end(end)))
      ring.close()
    })
    return this.#recovery
  }
}

/** Which program of the agent a subscription is. */
const numbers = new WeakMap<EventQueue, number>()

/**
 * Puts back what a killed agent left: the next agent would do it too, but there may be none.
 *
 * @returns `reason`, with what became of it
 */
async function recover(args: readonly string[], reason: CloudAppError): Promise<CloudAppError> {
  const became = await runRecovery(args).then(
    () => 'what it left in the guest was put back',
    (error: unknown) =>
      `what it left could not be put back (${error instanceof Error ? error.message : String(error)})`,
  )
  return new CloudAppError(reason.code, `${reason.message}; ${became}`, { cause: reason })
}
