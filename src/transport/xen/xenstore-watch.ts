import { CloudAppError } from '../../errors.js'

/** Paths that wait to be taken; a watch that falls further behind gets its own path with a count. */
const PENDING = 256

/** Something at or below `path` changed, or may have. */
export interface StoreEvent {
  readonly path: string
  /** Events that are not listed because nobody took them in time: look at everything below the watched path. */
  readonly lost: number
}

/** Events of one watch as an iterable that holds a bounded number; the same path twice is one event. */
export class StoreWatch implements AsyncIterableIterator<StoreEvent> {
  readonly #path: string
  readonly #onReturn: () => void
  readonly #pending = new Set<string>()
  #lost = 0
  #ended = false
  #failure: unknown
  #waiting: { resolve(result: IteratorResult<StoreEvent>): void; reject(error: unknown): void } | undefined

  constructor(path: string, onReturn: () => void) {
    this.#path = path
    this.#onReturn = onReturn
  }

  push(path: string): void {
    if (this.#ended) return
    if (this.#pending.has(path)) return
    if (this.#pending.size >= PENDING) this.#lost++
    else this.#pending.add(path)
    this.#give()
  }

  /** Ends the iteration, with an error if there is one. */
  end(failure?: unknown): void {
    if (this.#ended) return
    this.#ended = true
    this.#failure = failure
    this.#give()
  }

  next(): Promise<IteratorResult<StoreEvent>> {
    if (this.#waiting !== undefined) {
      return Promise.reject(new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'XenStore.watch: one next at a time'))
    }
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject }
      this.#give()
    })
  }

  async return(): Promise<IteratorResult<StoreEvent>> {
    this.end()
    this.#onReturn()
    return { done: true, value: undefined }
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  #give(): void {
    const waiting = this.#waiting
    if (waiting === undefined) return
    const event = this.#next()
    if (event === undefined && !this.#ended) return
    this.#waiting = undefined
    if (event !== undefined) waiting.resolve({ done: false, value: event })
    else if (this.#failure !== undefined) waiting.reject(this.#failure)
    else waiting.resolve({ done: true, value: undefined })
  }

  #next(): StoreEvent | undefined {
    const [path] = this.#pending
    if (path !== undefined) {
      this.#pending.delete(path)
      return { path, lost: 0 }
    }
    if (this.#lost === 0) return undefined
    const lost = this.#lost
    this.#lost = 0
    return { path: this.#path, lost }
  }
}
