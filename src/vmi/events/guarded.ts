import { setMaxListeners } from 'node:events'
import type { CloudAppError } from '../../errors.js'
import type { Captures } from './program.js'
import type { EventBatch, EventCounts, EventStream } from './source.js'

/**
 * A stream that ends with `ended` as well: from that moment on it gives out nothing more, not even what had come, and who
 * iterates gets the reason.
 */
export class GuardedStream<C extends Captures> implements EventStream<C> {
  readonly #closed = new AbortController()
  readonly #stream: EventStream<C>
  readonly #ended: AbortSignal
  // A race with the signal would leave something behind for each batch.
  readonly #waiting = new Set<(reason: unknown) => void>()
  #told = false

  constructor(stream: EventStream<C>, ended: AbortSignal) {
    this.#stream = stream
    this.#ended = ended
    const over = () => this.#closed.abort(stream.closed.reason)
    const end = () => {
      this.#closed.abort(ended.reason)
      for (const reject of this.#waiting) reject(this.#ended.reason)
      this.#told = this.#waiting.size > 0
      this.#waiting.clear()
      // A source that fails to end has its VM's handle to say so.
      stream.close().catch(() => {})
    }
    // As many as there are subscriptions.
    setMaxListeners(0, ended)
    if (ended.aborted) end()
    else ended.addEventListener('abort', end, { once: true })
    if (stream.closed.aborted) over()
    else stream.closed.addEventListener('abort', over, { once: true })
    this.closed.addEventListener('abort', () => ended.removeEventListener('abort', end), { once: true })
  }

  get closed(): AbortSignal {
    return this.#closed.signal
  }

  [Symbol.asyncIterator](): AsyncIterator<EventBatch<C>, undefined> {
    const inner = this.#stream[Symbol.asyncIterator]()
    return {
      next: () => this.#next(inner),
      return: async () => {
        await this.close()
        return { done: true, value: undefined }
      },
    }
  }

  counts(): Promise<EventCounts> {
    return this.#ended.aborted ? Promise.reject(this.#ended.reason) : this.#stream.counts()
  }

  close(): Promise<void> {
    return this.#stream.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #next(inner: AsyncIterator<EventBatch<C>, undefined>): Promise<IteratorResult<EventBatch<C>, undefined>> {
    if (this.#ended.aborted) return this.#over()
    return new Promise((resolve, reject) => {
      this.#waiting.add(reject)
      const settle = <T>(done: (value: T) => void) => {
        return (value: T) => {
          this.#waiting.delete(reject)
          done(value)
        }
      }
      inner.next().then(settle(resolve), settle(reject))
    })
  }

  /** The reason is thrown once, then the iteration is over. */
  #over(): Promise<IteratorResult<EventBatch<C>, undefined>> {
    if (this.#told) return Promise.resolve({ done: true, value: undefined })
    this.#told = true
    return Promise.reject(this.#ended.reason as CloudAppError)
  }
}
