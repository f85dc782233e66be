import { setTimeout as sleep } from 'node:timers/promises'
import { CloudAppError } from '../errors.js'
import type { ColumnBatch } from '../vmi/events/batch.js'
import type { CompiledProgram } from '../vmi/events/compile.js'
import { GuardedStream } from '../vmi/events/guarded.js'
import type { EventCounts, EventStream } from '../vmi/events/source.js'
import { encodeBatch } from './wire/events.js'

/** Subscriptions of one session: each may keep a call waiting, and a session has 64 of those. */
const MOST = 32

/** Counts the subscriptions of one session. */
export class SubscriptionQuota {
  #open = 0

  /** @throws CloudAppError `ERR_CLOUDAPP_LIMIT` */
  take(): void {
    if (this.#open >= MOST) {
      throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `A session has at most ${MOST} subscriptions`, {
        details: { limit: 'subscriptions', most: MOST },
      })
    }
    this.#open++
  }

  give(): void {
    this.#open--
  }
}

/** Takes one batch through the lease: admits, debits, records it. */
export type HandOut = (encode: () => Uint8Array) => Promise<Uint8Array>

/**
 * A subscription of one lease. Its events wait in the source's bounded queue until the holder asks for them, and until the
 * capability's rates allow it; what does not fit meanwhile is lost, and counted.
 */
export class HeldEvents {
  readonly #stream: EventStream
  readonly #batches: AsyncIterator<unknown, undefined>
  readonly #handOut: HandOut
  readonly #ended: AbortSignal
  #asked = false

  /** @param onEnd called once, when the subscription has ended at the source, with its last counts */
  constructor(
    readonly program: CompiledProgram,
    stream: EventStream,
    ended: AbortSignal,
    handOut: HandOut,
    onEnd: (counts: EventCounts | undefined) => void,
  ) {
    this.#stream = new GuardedStream(stream, ended)
    this.#batches = this.#stream[Symbol.asyncIterator]()
    this.#handOut = handOut
    this.#ended = ended
    const over = () => {
      // close() resolves when the source has let go, whoever ended it.
      stream
        .close()
        .then(() => stream.counts())
        .then(onEnd, () => onEnd(undefined))
    }
    if (stream.closed.aborted) over()
    else stream.closed.addEventListener('abort', over, { once: true })
  }

  /**
   * The next batch, when there is one.
   *
   * @returns nothing once the subscription was closed
   * @throws CloudAppError why it ended otherwise; `ERR_CLOUDAPP_LIMIT` when a limit that time does not refill is used up: the
   *   subscription has then ended
   */
  async next(): Promise<Uint8Array | undefined> {
    if (this.#asked) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'The subscription is asked already')
    this.#asked = true
    try {
      const { value: batch } = await this.#batches.next()
      return batch === undefined ? undefined : await this.#out(batch as ColumnBatch)
    } finally {
      this.#asked = false
    }
  }

  counts(): Promise<EventCounts> {
    return this.#stream.counts()
  }

  close(): Promise<void> {
    return this.#stream.close()
  }

  async #out(batch: ColumnBatch): Promise<Uint8Array> {
    for (;;) {
      try {
        return await this.#handOut(() => encodeBatch(batch))
      } catch (error) {
        const wait = CloudAppError.is(error, 'ERR_CLOUDAPP_LIMIT') ? error.details?.retryAfterMs : undefined
        if (typeof wait !== 'number') {
          await this.close()
          throw error
        }
        await this.#pause(wait)
      }
    }
  }

  async #pause(ms: number): Promise<void> {
    try {
      await sleep(Math.max(ms, 1), undefined, { signal: this.#ended, ref: false })
    } catch {
      throw this.#ended.reason
    }
  }
}
