import { CloudAppError } from './errors.js'

/**
 * The entry of `known` that `word` most likely stands for: the one with the smallest edit distance (Damerau's, with
 * neighbouring letters swapped counted once), if that is small for the word's length.
 */
export function nearest(word: string, known: readonly string[]): string | undefined {
  let best: string | undefined
  let least = Math.max(2, Math.floor(word.length / 3)) + 1
  for (const candidate of known) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase(), least)
    if (distance < least) {
      least = distance
      best = candidate
    }
  }
  return best
}

/**
 * Refuses option keys that `name` does not know, so that a misspelled option is never silently without effect.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_UNKNOWN_OPTION`, naming the nearest known key; `ERR_CLOUDAPP_INVALID_ARGUMENT` if
 *   `options` is not an object. `undefined` is no options.
 */
export function checkOptions(name: string, options: object | undefined, knownKeys: readonly string[]): void {
  if (options === undefined) return
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${name}: options must be an object`)
  }
  for (const key of Object.keys(options)) {
    if (knownKeys.includes(key)) continue
    const guess = nearest(key, knownKeys)
    const hint = guess === undefined ? `it knows ${knownKeys.join(', ') || 'none'}` : `did you mean '${guess}'?`
    throw new CloudAppError('ERR_CLOUDAPP_UNKNOWN_OPTION', `${name} knows no option '${key.slice(0, 64)}'; ${hint}`, {
      details: { option: key.slice(0, 64), known: knownKeys },
    })
  }
}

/** Edit distance of two words, or `limit` as soon as it can not be less. */
function editDistance(a: string, b: string, limit: number): number {
  if (Math.abs(a.length - b.length) >= limit) return limit
  let before: number[] = []
  let last = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const swap = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]
      row[j] = Math.min(
        (last[j] ?? 0) + 1,
        (row[j - 1] ?? 0) + 1,
        (last[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1),
        swap ? (before[j - 2] ?? 0) + 1 : Number.POSITIVE_INFINITY,
      )
    }
    before = last
    last = row
  }
  return Math.min(last[b.length] ?? limit, limit)
}
