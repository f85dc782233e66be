import { checkOptions } from '../../options.js'
import type { AuditEntry } from './types.js'

export interface CounterOptions {
  /** How long one announcement covers, milliseconds. 1,000 if absent. */
  readonly windowMs?: number
  /** How many operations it covers at most. 65,536 if absent. */
  readonly operations?: number
}

/** What was counted in a window. */
interface Totals {
  operations: number
  bytes: number
  failed: number
}

/**
 * Audits many operations of one kind with two records a window. Before the first operation runs, a record *announces* it
 * and says up to how many like it may follow in the window; those run without a record of their own; when the window
 * ends, a second record gives the exact numbers. So at each moment the log holds an upper bound of what was done, as
 * durable as its policy says, also where a crash or a full disk loses the second record.
 */
export class OperationCounter {
  readonly #append: (entry: AuditEntry) => Promise<unknown>
  readonly #entry: Omit<AuditEntry, 'outcome'>
  readonly #windowMs: number
  readonly #limit: number
  /** The announcement in force, or on its way. */
  #announced: Promise<void> | undefined
  #covering = false
  #totals: Totals = { operations: 0, bytes: 0, failed: 0 }
  #timer: NodeJS.Timeout | undefined
  /** Totals on their way. */
  #settling: Promise<void> = Promise.resolve()
  #failure: unknown

  constructor(
    append: (entry: AuditEntry) => Promise<unknown>,
    entry: Omit<AuditEntry, 'outcome'>,
    options: CounterOptions = {},
  ) {
    checkOptions('counter', options, ['windowMs', 'operations'])
    this.#append = append
    this.#entry = entry
    this.#windowMs = options.windowMs ?? 1000
    this.#limit = options.operations ?? 65_536
  }

  /**
   * To be called before an operation runs. `undefined`: it is covered, go ahead. A promise: go ahead when it resolves; if
   * it rejects (`ERR_CLOUDAPP_AUDIT`, `ERR_CLOUDAPP_LIMIT`), refuse the operation.
   *
   * @param details of this operation; written if it is the one that opens a window
   */
  begin(details?: AuditEntry['details']): Promise<void> | undefined {
    if (this.#covering && this.#totals.operations < this.#limit) {
      this.#totals.operations++
      return undefined
    }
    return this.#beginSlowly(details)
  }

  /** To be called when an operation has ended. */
  done(bytes: number, failed = false): void {
    this.#totals.bytes += bytes
    if (failed) this.#totals.failed++
  }

  /** Writes the open window's numbers. @throws as `AuditLog.append` */
  async close(): Promise<void> {
    await this.#announced?.catch(() => undefined)
    this.#endWindow()
    await this.#settling
    if (this.#failure !== undefined) throw this.#failure
  }

  async #beginSlowly(details: AuditEntry['details']): Promise<void> {
    // Many may wait for one announcement, and it may cover fewer than wait: each looks again.
    for (;;) {
      if (this.#covering) {
        if (this.#totals.operations < this.#limit) break
        this.#endWindow()
      }
      this.#announced ??= this.#announce(details)
      await this.#announced
    }
    this.#totals.operations++
  }

  async #announce(details: AuditEntry['details']): Promise<void> {
    try {
      // The numbers of the last window stand before the next announcement.
      await this.#settling
      const more = { covers: this.#limit, windowMs: this.#windowMs }
      await this.#append({
        ...this.#entry,
        outcome: 'allowed',
        details: { ...this.#entry.details, ...details, ...more },
      })
      this.#failure = undefined
      this.#covering = true
      this.#timer = setTimeout(() => this.#endWindow(), this.#windowMs)
      this.#timer.unref()
    } finally {
      this.#announced = undefined
    }
  }

  #endWindow(): void {
    clearTimeout(this.#timer)
    const totals = this.#totals
    // Bytes of an operation that outlived its window are still to be told.
    if (!this.#covering && totals.bytes === 0 && totals.failed === 0) return
    this.#covering = false
    this.#totals = { operations: 0, bytes: 0, failed: 0 }
    const action = `${this.#entry.action}.total`
    const record = {
      ...this.#entry,
      action,
      outcome: 'allowed' as const,
      details: { ...this.#entry.details, ...totals },
    }
    this.#settling = this.#append(record).then(
      () => undefined,
      (error: unknown) => {
        this.#failure = error
      },
    )
  }
}
