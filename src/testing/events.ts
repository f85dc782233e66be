import { setMaxListeners } from 'node:events'
import type { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import { compileProgram, RECORD_WORDS, TRAPS } from '../vmi/events/compile.js'
import type { Captures, EventField, EventProgram, EventRegister, Trap } from '../vmi/events/program.js'
import { aborted, checkSubscribe, EventQueue } from '../vmi/events/queue.js'
import type { EventSource, EventStream, EventSupport, SubscribeOptions } from '../vmi/events/source.js'
import { type FaultReason, type Space, virtualSpace } from '../vmi/memory.js'
import { capture, type Moment, matches } from './interpreter.js'
import { BufferMemory } from './memory.js'

/** What happens in a synthetic guest, for {@link SyntheticGuest.raise}. */
export interface SyntheticEvent {
  /** What springs: the same as in a program; of a `register` trap `changed` says nothing here. */
  readonly trap: Trap
  /** 0 by default. */
  readonly vcpu?: number
  /** 0 where not given; cr3 is by default the kernel's, rip a breakpoint's address. */
  readonly registers?: Readonly<Partial<Record<EventRegister, bigint>>>
  /** What the trap tells: `{ leaf: 1n }`. 0 where not given. */
  readonly fields?: Readonly<Partial<Record<EventField, bigint>>>
}

interface Subscription {
  readonly queue: EventQueue
  /** Of a limited rate: events that may be told now, and since when. */
  left: number
  at: number
  readonly rate: number
  matched: number
  dropped: number
}

/** The events of one synthetic guest: evaluates programs as the event agent does, on the guest's buffer. */
export class SyntheticEvents {
  readonly #subscriptions = new Set<Subscription>()
  readonly #space: Space
  readonly #memory: BufferMemory

  constructor(ram: Uint8Array, space: Space) {
    this.#memory = new BufferMemory(ram)
    this.#space = space
  }

  raise(event: SyntheticEvent): void {
    checkOptions('raise', event, ['trap', 'vcpu', 'registers', 'fields'])
    const { vcpu = 0, fields = {}, trap } = event
    const registers = {
      cr3: this.#space & ~0xfffn,
      rip: trap.kind === 'breakpoint' ? trap.at : 0n,
      ...event.registers,
    }
    const levels = Number(this.#space & 0xfffn) === 5 ? 5 : 4
    const space = virtualSpace(registers.cr3, levels)
    const moment: Moment = { registers, fields, read: (address, length) => this.#read(space, address, length) }
    for (const subscription of this.#subscriptions) {
      const { program } = subscription.queue
      if (!springs(program.trap, trap, fields) || !matches(program.words, moment)) continue
      const serial = subscription.matched++
      if (!admit(subscription)) {
        subscription.dropped++
        continue
      }
      const record = new BigUint64Array(program.recordWords)
      record.set([0n, process.hrtime.bigint(), BigInt(vcpu), BigInt(serial), registers.cr3, registers.rip])
      capture(program.words, moment, record, RECORD_WORDS)
      subscription.queue.push(new Uint32Array(record.buffer), 0, 1)
    }
  }

  /** The events as one handle on the guest has them: they end with it. */
  source(closed: AbortSignal): EventSource {
    return {
      subscribe: async <const C extends Captures>(program: EventProgram<C>, options: SubscribeOptions = {}) => {
        if (closed.aborted) throw closed.reason
        return this.#subscribe(program as EventProgram, options, closed) as unknown as EventStream<C>
      },
      support: async (): Promise<EventSupport> => {
        if (closed.aborted) throw closed.reason
        return { traps: Object.keys(TRAPS) as Trap['kind'][], breakpoints: 'int3' }
      },
    }
  }

  #subscribe(program: EventProgram, options: SubscribeOptions, closed: AbortSignal): EventQueue {
    const { buffer } = checkSubscribe(options)
    const { signal } = options
    const compiled = compileProgram(program)
    const rate = program.rate ?? 0
    const counts = () => ({ matched: subscription.matched, dropped: subscription.dropped })
    const queue = new EventQueue(compiled, buffer, counts, async () => {
      this.#subscriptions.delete(subscription)
      return counts()
    })
    const subscription: Subscription = { queue, rate, left: rate, at: performance.now(), matched: 0, dropped: 0 }
    this.#subscriptions.add(subscription)
    const stop = () => void queue.end(aborted(signal as AbortSignal))
    const over = () => void queue.end(closed.reason as CloudAppError)
    signal?.addEventListener('abort', stop, { once: true })
    setMaxListeners(0, closed)
    closed.addEventListener('abort', over, { once: true })
    queue.closed.addEventListener('abort', () => {
      signal?.removeEventListener('abort', stop)
      closed.removeEventListener('abort', over)
    })
    return queue
  }

  #read(space: Space, address: bigint, length: number): { bytes: Uint8Array; fault?: FaultReason } {
    const [result] = this.#memory.sync.read([{ space, at: address, length }])
    const [fault] = result?.faults ?? []
    const bytes = result?.bytes ?? new Uint8Array(0)
    if (fault === undefined) return { bytes }
    return { bytes: bytes.subarray(0, Number(BigInt.asUintN(64, fault.address - address))), fault: fault.reason }
  }
}

function springs(wanted: Trap, happened: Trap, fields: NonNullable<SyntheticEvent['fields']>): boolean {
  if (wanted.kind === 'register' && happened.kind === 'register') {
    if (wanted.register !== happened.register) return false
    return wanted.changed !== true || fields.newValue !== fields.oldValue
  }
  if (wanted.kind === 'msr' && happened.kind === 'msr') return wanted.msr === happened.msr
  if (wanted.kind === 'breakpoint' && happened.kind === 'breakpoint') {
    return wanted.at === happened.at && wanted.space === happened.space
  }
  return wanted.kind === happened.kind
}

/** Debits the rate: a bucket that holds one second's. */
function admit(subscription: Subscription): boolean {
  const { rate } = subscription
  if (rate === 0) return true
  const now = performance.now()
  subscription.left = Math.min(rate, subscription.left + ((now - subscription.at) * rate) / 1000)
  subscription.at = now
  if (subscription.left < 1) return false
  subscription.left--
  return true
}
