import { parseDuration } from '../duration.js'
import { CloudAppError } from '../errors.js'

/** A point in time: a Date, milliseconds since 1970 UTC, or a duration from now such as `30s`, `10m`, `8h`, `7d`. */
export type Moment = Date | number | string

/** Milliseconds since 1970 UTC. @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` */
export function momentAfter(moment: Moment, now: number, name: string): number {
  const at = typeof moment === 'string' ? now + parseDuration(moment, name) : Number(moment)
  if (Number.isSafeInteger(at) && at >= 0) return at
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${name} must be a time after 1970`)
}

/** ISO 8601, or the plain number for a time past what a Date can hold. */
export function isoTime(ms: number): string {
  return Math.abs(ms) <= 8.64e15 ? new Date(ms).toISOString() : `${ms} ms`
}
