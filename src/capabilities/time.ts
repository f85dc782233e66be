import { CloudAppError } from '../errors.js'

/** A point in time: a Date, milliseconds since 1970 UTC, or a duration from now such as `30s`, `10m`, `8h`, `7d`. */
export type Moment = Date | number | string

const UNITS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const

/** Milliseconds of `250ms`, `30s`, `10m`, `8h` or `7d`. @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` */
export function parseDuration(text: string): number {
  const found = /^(\d{1,9})(ms|s|m|h|d)$/.exec(text)
  const unit = found?.[2] as keyof typeof UNITS | undefined
  if (found === null || unit === undefined) {
    const seen = String(text).slice(0, 32)
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `'${seen}' is no duration; write it as 30s, 10m, 8h or 7d`)
  }
  return Number(found[1]) * UNITS[unit]
}

/** Milliseconds since 1970 UTC. @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` */
export function momentAfter(moment: Moment, now: number, name: string): number {
  const at = typeof moment === 'string' ? now + parseDuration(moment) : Number(moment)
  if (Number.isSafeInteger(at) && at >= 0) return at
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${name} must be a time after 1970`)
}

/** ISO 8601, or the plain number for a time past what a Date can hold. */
export function isoTime(ms: number): string {
  return Math.abs(ms) <= 8.64e15 ? new Date(ms).toISOString() : `${ms} ms`
}
