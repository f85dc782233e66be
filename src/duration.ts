import { CloudAppError } from './errors.js'

/** A length of time: milliseconds, or a number with a unit: `250ms`, `30s`, `10m`, `12h`, `7d`. */
export type Duration = number | string

const UNITS: Readonly<Record<string, number>> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** The longest duration taken: a hundred years, so that sums with a time of day stay exact. */
const MAX_MS = 100 * 365.25 * 86_400_000

/**
 * A duration in milliseconds.
 *
 * @param what - Names the value in the error.
 * Throws ERR_CLOUDAPP_INVALID_ARGUMENT unless it is a finite number of milliseconds from 0 to a hundred years or such a
 * number with a unit (`ms`, `s`, `m`, `h`, `d`).
 * @example
 * ```ts
 * parseDuration('10m') // 600000
 * ```
 */
export function parseDuration(value: Duration, what = 'duration'): number {
  let ms = Number.NaN
  if (typeof value === 'number') ms = value
  else if (typeof value === 'string' && value.length <= 32) {
    const [, number, unit] = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(value) ?? []
    if (number !== undefined && unit !== undefined) ms = Number(number) * (UNITS[unit] as number)
  }
  if (Number.isFinite(ms) && ms >= 0 && ms <= MAX_MS) return ms
  throw new CloudAppError(
    'ERR_CLOUDAPP_INVALID_ARGUMENT',
    `${what} must be milliseconds or a number with a unit such as '30s', '10m', '12h'; got ${shown(value)}`,
  )
}

function shown(value: unknown): string {
  return JSON.stringify(typeof value === 'string' ? value.slice(0, 40) : String(value))
}
