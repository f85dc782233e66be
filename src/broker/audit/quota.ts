import type { PublicKey } from '../../capabilities/keys.js'
import { CloudAppError } from '../../errors.js'

/** How much of the log one delegate may fill. */
export interface AuditQuota {
  /** Records a second over time. */
  readonly recordsPerSecond: number
  /** Records at once, after a quiet time. */
  readonly burst: number
}

interface Bucket {
  tokens: number
  at: number
}

/** Delegates whose use is remembered; the one not seen for the longest time is forgotten first. */
const MAX_DELEGATES = 4096

/** Counts records by the holder's key, so that a flood by one can not fill the disk for the others. */
export class QuotaKeeper {
  readonly #quota: AuditQuota
  readonly #now: () => number
  readonly #buckets = new Map<PublicKey, Bucket>()

  constructor(quota: AuditQuota, now: () => number) {
    this.#quota = quota
    this.#now = now
  }

  /** Takes a record's worth. @throws CloudAppError `ERR_CLOUDAPP_LIMIT` with `details.retryAfterMs` */
  take(holder: PublicKey): void {
    const { recordsPerSecond, burst } = this.#quota
    const now = this.#now()
    const bucket = this.#buckets.get(holder) ?? { tokens: burst, at: now }
    bucket.tokens = Math.min(burst, bucket.tokens + ((now - bucket.at) / 1000) * recordsPerSecond)
    bucket.at = now
    this.#buckets.delete(holder)
    this.#buckets.set(holder, bucket)
    this.#forget()
    if (bucket.tokens >= 1) {
      bucket.tokens -= 1
      return
    }
    const retryAfterMs = Math.ceil(((1 - bucket.tokens) / recordsPerSecond) * 1000)
    throw new CloudAppError(
      'ERR_CLOUDAPP_LIMIT',
      `this delegate has filled its share of the audit log; again in ${retryAfterMs} ms`,
      {
        details: { limit: 'audit', retryAfterMs },
      },
    )
  }

  #forget(): void {
    if (this.#buckets.size <= MAX_DELEGATES) return
    const oldest = this.#buckets.keys().next()
    if (oldest.done !== true) this.#buckets.delete(oldest.value)
  }
}
