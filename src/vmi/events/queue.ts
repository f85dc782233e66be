import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import { BatchBuilder, type ColumnBatch, eventBytes } from './batch.js'
import { checkCount } from './check.js'
import type { CompiledProgram } from './compile.js'
import { BATCH_EVENTS, type EventBatch, type EventCounts, type EventStream, type SubscribeOptions } from './source.js'

const DEFAULT_BUFFER = 8 * 1024 * 1024
const LEAST_BUFFER = 64 * 1024
const MOST_BUFFER = 256 * 1024 * 1024
/** Room of a subscription's first batch, in events; later ones have what the one before took. */
const FIRST = 64

/** @throws CloudAppError `ERR_CLOUDAPP_UNKNOWN_OPTION`, `ERR_CLOUDAPP_INVALID_ARGUMENT`, `ERR_CLOUDAPP_LIMIT`, `ERR_CLOUDAPP_ABORTED` */
export function checkSubscribe(options: SubscribeOptions): { readonly buffer: number } {
  checkOptions('subscribe', options, ['signal', 'buffer'])
  const { signal, buffer = DEFAULT_BUFFER } = options
  if (signal?.aborted === true) throw aborted(signal)
  return { buffer: checkCount('options.buffer', buffer, LEAST_BUFFER, MOST_BUFFER) }
}

export function aborted(signal: AbortSignal): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_ABORTED', 'the subscription was aborted', { cause: signal.reason })
}

interface Waiting {
  resolve(result: IteratorResult<EventBatch, undefined>): void
  reject(reason: unknown): void
}

/**
 * One subscription in the process that has the events: records come in by {@link push}, batches go out to one consumer.
 *
 * What is lost is counted by the records' serials, which run on for lost events too: where an event was lost, in the ring or
 * here, makes no difference to who is told.
 */
export class EventQueue implements EventStream {
  readonly program: CompiledProgram
  readonly #release: () => Promise<EventCounts>
  readonly #counts: () => EventCounts
  readonly #most: number
  readonly #ended = new AbortController()
  readonly #full: BatchBuilder[] = []
  readonly #waiting: Waiting[] = []
  #filling: BatchBuilder | undefined
  #room = FIRST
  #kept = 0
  #overflow = 0
  /** Serial the next event has if none is lost. */
  #expected = 0
  /** Told once by a throwing next(). */
  #failure: CloudAppError | undefined
  #last: EventCounts | undefined
  #closing: Promise<void> | undefined

  /**
   * @param counts what the producer has matched and lost so far
   * @param release ends the subscription at the producer; gives its last counts
   */
  constructor(
    program: CompiledProgram,
    buffer: number,
    counts: () => EventCounts,
    release: () => Promise<EventCounts>,
  ) {
    this.program = program
    this.#most = Math.max(1, Math.floor(buffer / eventBytes(program)))
    this.#counts = counts
    this.#release = release
  }

  get closed(): AbortSignal {
    return this.#ended.signal
  }

  /** Takes `count` records of this program from the u32 index `from` on. */
  push(records: Uint32Array, from: number, count: number): void {
    if (this.#ended.signal.aborted) return
    const taken = Math.min(count, this.#most - this.#kept)
    this.#overflow += count - taken
    this.#kept += taken
    const stride = this.program.recordWords * 2
    for (let done = 0; done < taken; ) {
      let builder = this.#filling
      if (builder === undefined || builder.count === builder.capacity) {
        if (builder !== undefined) this.#full.push(builder)
        const grown = builder === undefined ? this.#room : builder.capacity * 2
        builder = new BatchBuilder(this.program, Math.min(Math.max(grown, taken - done), this.#most))
        this.#filling = builder
      }
      const part = Math.min(taken - done, builder.capacity - builder.count)
      builder.append(records, from + done * stride, part)
      done += part
    }
    while (this.#waiting.length > 0 && this.#kept > 0)
      this.#waiting.shift()?.resolve({ done: false, value: this.#take() })
  }

  async counts(): Promise<EventCounts> {
    const { matched, dropped } = this.#last ?? this.#counts()
    return { matched, dropped: dropped + this.#overflow }
  }

  [Symbol.asyncIterator](): AsyncIterator<EventBatch, undefined> {
    return {
      next: () => this.next(),
      return: async () => {
        await this.close()
        return { done: true, value: undefined }
      },
    }
  }

  /** The next batch, at once if events are kept. */
  next(): Promise<IteratorResult<EventBatch, undefined>> {
    if (this.#kept > 0) return Promise.resolve({ done: false, value: this.#take() })
    if (this.#ended.signal.aborted) return this.#over()
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }))
  }

  close(): Promise<void> {
    this.#drop()
    return this.end(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the subscription is closed'))
  }

  /** Ends it for a reason of the producer's: who iterates gets what is kept, then the reason. Idempotent. */
  end(reason: CloudAppError): Promise<void> {
    this.#closing ??= this.#end(reason)
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #end(reason: CloudAppError): Promise<void> {
    if (reason.code !== 'ERR_CLOUDAPP_CLOSED') this.#failure = reason
    this.#last = this.#counts()
    this.#ended.abort(reason)
    for (const { resolve, reject } of this.#waiting.splice(0)) this.#over().then(resolve, reject)
    this.#last = await this.#release()
  }

  #over(): Promise<IteratorResult<EventBatch, undefined>> {
    const failure = this.#failure
    this.#failure = undefined
    return failure === undefined ? Promise.resolve({ done: true, value: undefined }) : Promise.reject(failure)
  }

  #drop(): void {
    this.#full.length = 0
    this.#filling = undefined
    this.#kept = 0
  }

  #take(): ColumnBatch {
    let builder = this.#full.shift()
    if (builder === undefined) {
      builder = this.#filling as BatchBuilder
      this.#filling = undefined
      this.#room = Math.min(BATCH_EVENTS, Math.max(FIRST, builder.count + (builder.count >> 2)))
    }
    this.#kept -= builder.count
    const next = builder.lastSerial + 1
    const dropped = next - this.#expected - builder.count
    this.#expected = next
    return builder.finish(dropped)
  }
}
