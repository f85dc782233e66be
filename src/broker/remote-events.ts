import { setMaxListeners } from 'node:events'
import { CloudAppError } from '../errors.js'
import type { Session } from '../transport/session.js'
import { asBatch } from '../vmi/events/batch.js'
import { type CompiledProgram, compileProgram } from '../vmi/events/compile.js'
import type { Captures, EventProgram } from '../vmi/events/program.js'
import { aborted, checkSubscribe } from '../vmi/events/queue.js'
import type {
  EventBatch,
  EventCounts,
  EventSource,
  EventStream,
  EventSupport,
  SubscribeOptions,
} from '../vmi/events/source.js'
import { decodeBatch } from './wire/events.js'

/** The events of a delegation at the far end. */
export interface RemoteEventsStub {
  subscribe(program: EventProgram, buffer?: number): PromiseLike<SubscriptionStub>
  eventSupport(): PromiseLike<EventSupport>
}

interface SubscriptionStub {
  next(): PromiseLike<Uint8Array | null>
  counts(): PromiseLike<EventCounts>
  close(): PromiseLike<void>
}

/** Events behind a broker: batches are fetched when they are asked for, one round trip each. */
export class RemoteEvents implements EventSource {
  readonly #session: Session<unknown>
  readonly #stub: RemoteEventsStub

  constructor(session: Session<unknown>, stub: RemoteEventsStub) {
    this.#session = session
    this.#stub = stub
  }

  async subscribe<const C extends Captures = Record<never, never>>(
    program: EventProgram<C>,
    options: SubscribeOptions = {},
  ): Promise<EventStream<C>> {
    checkSubscribe(options)
    const compiled = compileProgram(program as EventProgram)
    const { signal, buffer } = options
    const asked = this.#stub.subscribe(program as EventProgram, ...(buffer === undefined ? [] : [buffer]))
    const stream = new RemoteStream<C>(this.#session, await this.#session.settle(asked), compiled)
    if (signal === undefined) return stream
    const stop = () => void stream.end(aborted(signal)).catch(() => {})
    signal.addEventListener('abort', stop, { once: true })
    stream.closed.addEventListener('abort', () => signal.removeEventListener('abort', stop), { once: true })
    if (signal.aborted) {
      await stream.close()
      throw aborted(signal)
    }
    return stream
  }

  support(): Promise<EventSupport> {
    return this.#session.settle(this.#stub.eventSupport())
  }
}

class RemoteStream<C extends Captures> implements EventStream<C> {
  readonly #session: Session<unknown>
  readonly #stub: SubscriptionStub
  readonly #program: CompiledProgram
  readonly #ended = new AbortController()
  #turn: Promise<unknown> = Promise.resolve()
  #last: EventCounts | undefined
  #told = false
  #closing: Promise<void> | undefined

  constructor(session: Session<unknown>, stub: SubscriptionStub, program: CompiledProgram) {
    this.#session = session
    this.#stub = stub
    this.#program = program
    const gone = () => this.#ended.abort(session.closed.reason)
    // As many as there are subscriptions.
    setMaxListeners(0, session.closed)
    session.closed.addEventListener('abort', gone, { once: true })
    this.closed.addEventListener('abort', () => session.closed.removeEventListener('abort', gone), { once: true })
    if (session.closed.aborted) gone()
  }

  get closed(): AbortSignal {
    return this.#ended.signal
  }

  [Symbol.asyncIterator](): AsyncIterator<EventBatch<C>, undefined> {
    return {
      next: () => {
        // The broker is asked once at a time.
        const next = this.#turn.then(() => this.#next())
        this.#turn = next.catch(() => {})
        return next
      },
      return: async () => {
        await this.close()
        return { done: true, value: undefined }
      },
    }
  }

  async counts(): Promise<EventCounts> {
    return this.#last ?? this.#session.settle(this.#stub.counts())
  }

  close(): Promise<void> {
    return this.end(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the subscription is closed'))
  }

  end(reason: CloudAppError): Promise<void> {
    this.#closing ??= this.#end(reason)
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #next(): Promise<IteratorResult<EventBatch<C>, undefined>> {
    if (this.#ended.signal.aborted) return this.#over()
    try {
      const message = await this.#session.settle(this.#stub.next())
      if (message === null) await this.close()
      else if (!this.#ended.signal.aborted) {
        return { done: false, value: asBatch<C>(decodeBatch(message, this.#program)) }
      }
    } catch (error) {
      if (!CloudAppError.is(error)) throw error
      await this.end(error)
    }
    return this.#over()
  }

  /** Why it ended, thrown once if it was not by its owner; then the iteration is over. */
  #over(): IteratorResult<EventBatch<C>, undefined> {
    const reason: unknown = this.#ended.signal.reason
    const told = this.#told || CloudAppError.is(reason, 'ERR_CLOUDAPP_CLOSED')
    this.#told = true
    if (!told) throw reason
    return { done: true, value: undefined }
  }

  async #end(reason: CloudAppError): Promise<void> {
    this.#ended.abort(reason)
    try {
      if (this.#session.closed.aborted) return
      await this.#session.settle(this.#stub.close())
      this.#last = await this.#session.settle(this.#stub.counts())
    } catch (error) {
      // A capability that has ended took its subscriptions with it.
      if (!CloudAppError.is(error)) throw error
    } finally {
      ;(this.#stub as unknown as Partial<Disposable>)[Symbol.dispose]?.()
    }
  }
}
