import { CloudAppError } from '../../errors.js'
import { checkOptions, nearest } from '../../options.js'

const U64_END = 1n << 64n

/** The error for a program that is not well-formed; `place` is where: `program.captures.path.bytes`. */
export function malformed(place: string, what: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${place}: ${what}`, { details: { place } })
}

/** The error for a program past a bound. */
export function tooLarge(place: string, limit: string, most: number): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_LIMIT', `${place}: more than ${most} (${limit})`, {
    details: { place, limit, most },
  })
}

/** A plain object with no other keys than these. */
export function checkObject(place: string, value: unknown, keys: readonly string[]): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw malformed(place, 'must be an object')
  checkOptions(place, value, keys)
  return value as Record<string, unknown>
}

export function checkWord(place: string, value: unknown): bigint {
  if (typeof value !== 'bigint' || value < 0n || value >= U64_END) {
    throw malformed(place, 'must be a bigint of 64 bits, unsigned')
  }
  return value
}

export function checkCount(place: string, value: unknown, least: number, most: number): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < least) {
    throw malformed(place, `must be a whole number from ${least} to ${most}`)
  }
  if (value > most) throw tooLarge(place, place.slice(place.lastIndexOf('.') + 1), most)
  return value
}

/** One of some words; gives its index. */
export function checkName(place: string, value: unknown, known: readonly string[]): number {
  const index = known.indexOf(value as string)
  if (index >= 0) return index
  if (typeof value !== 'string') throw malformed(place, `must be one of ${known.join(', ')}`)
  const guess = nearest(value.slice(0, 64), known)
  const hint = guess === undefined ? `there are ${known.join(', ')}` : `did you mean '${guess}'?`
  throw malformed(place, `'${value.slice(0, 64)}' is not known; ${hint}`)
}
