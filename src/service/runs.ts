import { CloudAppError } from '../errors.js'
import { INTERFACE_LIMITS, type RunEvent } from './interface/protocol.js'

/** How far a scan has come. */
export interface Progress {
  readonly done?: number
  readonly total?: number
  readonly message?: string
}

/** What a run asks to look once more: one loop of the service domain. */
export interface RunTarget {
  /** Name of the VM the loop is about; the service's own name for a loop about none. */
  readonly label: string
  /** Asks for an extra tick. */
  attach(run: Run): void
  /** Withdraws the ask. */
  detach(run: Run): void
}

/**
 * A client's request for a scan, over one or more loops. Keeps what happens for the client to fetch: a bounded queue whose
 * lost events are counted in a `dropped` event.
 */
export class Run {
  readonly #open: Set<RunTarget>
  readonly #events: RunEvent[] = []
  #dropped = 0
  #failed = false
  #done = false
  #wake: (() => void) | undefined

  constructor(targets: readonly RunTarget[]) {
    this.#open = new Set(targets)
    for (const target of targets) this.#push({ type: 'queued', vm: target.label })
    for (const target of targets) target.attach(this)
  }

  /** True once it has finished, failed or was cancelled. */
  get done(): boolean {
    return this.#done
  }

  started(target: RunTarget): void {
    if (this.#open.has(target)) this.#push({ type: 'started', vm: target.label })
  }

  progress(target: RunTarget, { done, total, message }: Progress): void {
    if (!this.#open.has(target)) return
    this.#push({
      type: 'progress',
      vm: target.label,
      ...(done !== undefined && { done }),
      ...(total !== undefined && { total }),
      ...(message !== undefined && { message: message.slice(0, 1000) }),
    })
  }

  /** @param changes - Findings that were raised or closed meanwhile. */
  finished(target: RunTarget, changes: number): void {
    if (!this.#open.delete(target)) return
    this.#push({ type: 'finished', vm: target.label, changes })
    this.#settle()
  }

  failed(target: RunTarget, error: unknown): void {
    if (!this.#open.delete(target)) return
    this.#failed = true
    const code = CloudAppError.is(error) ? error.code : 'unexpected'
    const message = (error instanceof Error ? error.message : String(error)).slice(0, 1000)
    this.#push({ type: 'failed', vm: target.label, code, message })
    this.#settle()
  }

  /** Idempotent. A scan already begun is told by the `signal` of its tick. */
  cancel(): void {
    if (this.#done) return
    for (const target of this.#open) target.detach(this)
    this.#open.clear()
    this.#push({ type: 'done', outcome: 'cancelled' })
    this.#done = true
  }

  /** Events that are there, or the first within `waitMs`. */
  async next(waitMs: number): Promise<RunEvent[]> {
    if (this.#wake) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'A run takes one next at a time')
    if (this.#events.length === 0 && !this.#done && waitMs > 0) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, waitMs)
        this.#wake = () => {
          clearTimeout(timer)
          resolve()
        }
      })
      this.#wake = undefined
    }
    const events = this.#events.splice(0)
    if (this.#dropped > 0) events.unshift({ type: 'dropped', count: this.#dropped })
    this.#dropped = 0
    return events
  }

  #settle(): void {
    if (this.#open.size > 0) return
    this.#push({ type: 'done', outcome: this.#failed ? 'failed' : 'finished' })
    this.#done = true
  }

  #push(event: RunEvent): void {
    this.#events.push(event)
    if (this.#events.length > INTERFACE_LIMITS.runEvents) {
      // Progress first: what happened matters more than how far it had come.
      const index = this.#events.findIndex((e) => e.type === 'progress')
      this.#events.splice(Math.max(index, 0), 1)
      this.#dropped++
    }
    this.#wake?.()
  }
}
