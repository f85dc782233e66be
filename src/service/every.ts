import { CloudAppError } from '../errors.js'
import type { Progress, Run, RunTarget } from './runs.js'

/** One turn of a scan loop. */
export interface Tick {
  /** Counts from 0. */
  readonly number: number
  /** Due times that passed while the turn before was still at work. They are not made up for. */
  readonly missed: number
  /** True if a client asked for this turn. */
  readonly requested: boolean
  /** Fires when everybody who asked for this turn has cancelled; never on a turn that was due anyway. */
  readonly signal: AbortSignal
  /** Tells those who asked how far the turn has come. */
  progress(progress: Progress): void
}

interface LoopOptions {
  readonly intervalMs: number
  readonly label: string
  /** Aborted: the loop ends. */
  readonly until: readonly AbortSignal[]
  /** Changes of findings so far, to tell how many a turn made. */
  readonly changes: () => number
  /** Called when a turn was completed, and when the loop has ended. */
  readonly onTurn: () => void
  readonly onEnd: (loop: Loop) => void
}

/** A requested turn begins no sooner than this after the one before: clients can not keep a VM under constant scan. */
const MIN_GAP = 1000

/**
 * The iterable behind `sd.every`: first turn at once, then one each interval by the monotonic clock, counted from the first
 * and not from the end of the last, so it does not drift; turns that were missed are skipped. Requests by clients make
 * an extra turn.
 */
export class Loop implements AsyncIterableIterator<Tick>, RunTarget {
  readonly label: string
  readonly #options: LoopOptions
  readonly #begin = performance.now()
  readonly #waiting = new Set<Run>()
  #turn: { runs: Set<Run>; changes: number; cancel: AbortController; due: boolean } | undefined
  #number = 0
  /** Index of the next due time: `begin + due * interval`. */
  #due = 0
  #last = Number.NEGATIVE_INFINITY
  #wake: (() => void) | undefined
  #ended = false
  #failure: unknown

  constructor(options: LoopOptions) {
    this.#options = options
    this.label = options.label
    for (const signal of options.until) signal.addEventListener('abort', this.#onAbort, { once: true })
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  async next(): Promise<IteratorResult<Tick, undefined>> {
    this.#complete()
    while (!this.#over()) {
      const now = performance.now()
      const due = this.#begin + this.#due * this.#options.intervalMs
      const requested = this.#waiting.size > 0
      const gap = this.#last + Math.min(MIN_GAP, this.#options.intervalMs)
      const at = requested ? Math.min(due, Math.max(gap, now)) : due
      if (now >= at) return { done: false, value: this.#start(now, now >= due) }
      await this.#sleep(at - now)
    }
    this.#end()
    return { done: true, value: undefined }
  }

  /** Called by `for await` when its body breaks or throws. */
  async return(): Promise<IteratorResult<Tick, undefined>> {
    this.#end()
    return { done: true, value: undefined }
  }

  attach(run: Run): void {
    if (this.#ended) {
      run.failed(this, ended())
      return
    }
    this.#waiting.add(run)
    this.#wake?.()
  }

  detach(run: Run): void {
    this.#waiting.delete(run)
    const turn = this.#turn
    if (turn?.runs.delete(run) && turn.runs.size === 0 && !turn.due) {
      turn.cancel.abort(new CloudAppError('ERR_CLOUDAPP_ABORTED', 'Everybody who asked for this scan has cancelled'))
    }
  }

  /** Why the body around the loop failed, for those who asked for the turn that failed. */
  fail(error: unknown): void {
    this.#failure = error
  }

  #start(now: number, due: boolean): Tick {
    let missed = 0
    if (due) {
      const elapsed = Math.floor((now - this.#begin) / this.#options.intervalMs)
      missed = Math.max(0, elapsed - this.#due)
      this.#due = elapsed + 1
    }
    this.#last = now
    const turn = { runs: new Set(this.#waiting), changes: this.#options.changes(), cancel: new AbortController(), due }
    this.#waiting.clear()
    this.#turn = turn
    for (const run of turn.runs) run.started(this)
    return {
      number: this.#number++,
      missed,
      requested: turn.runs.size > 0,
      signal: turn.cancel.signal,
      progress: (progress) => {
        for (const run of turn.runs) run.progress(this, progress)
      },
    }
  }

  #complete(): void {
    const turn = this.#turn
    if (!turn) return
    this.#turn = undefined
    for (const run of turn.runs) run.finished(this, Math.max(0, this.#options.changes() - turn.changes))
    this.#options.onTurn()
  }

  #over(): boolean {
    return this.#ended || this.#options.until.some((signal) => signal.aborted)
  }

  #end(): void {
    if (this.#ended) return
    this.#ended = true
    for (const signal of this.#options.until) signal.removeEventListener('abort', this.#onAbort)
    this.#options.onEnd(this)
    const runs = [...(this.#turn?.runs ?? []), ...this.#waiting]
    this.#turn = undefined
    this.#waiting.clear()
    // `for await` returns the iterator before the body's error reaches its catcher: look for the reason after that.
    if (runs.length === 0) return
    setImmediate(() => {
      for (const run of runs) run.failed(this, this.#failure ?? this.#reason())
    })
  }

  #reason(): unknown {
    const signal = this.#options.until.find((s) => s.aborted)
    return signal?.reason ?? ended()
  }

  readonly #onAbort = () => this.#wake?.()

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      // Longer than setTimeout takes: wake up in between.
      const timer = setTimeout(done, Math.min(ms, 0x7fff_ffff))
      const self = this
      function done() {
        clearTimeout(timer)
        self.#wake = undefined
        resolve()
      }
      this.#wake = done
    })
  }
}

function ended(): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The scan loop has ended')
}
