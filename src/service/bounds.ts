import { CloudAppError } from '../errors.js'
import type { Json } from './ocsf/types.js'

/**
 * Bounds of one finding. What a hostile guest put into it is cut to them, never refused: a long name must not hide the
 * process that bears it. Every cut is stated in the finding.
 */
export const FINDING_LIMITS = {
  /** Characters. */
  title: 256,
  description: 4096,
  /** Longer keys are shortened to a prefix and their SHA-256. */
  key: 256,
  comment: 1024,
  label: 128,
  labels: 32,
  evidences: 64,
  /** Bytes of one finding's evidence as JSON, all together. */
  evidenceBytes: 64 * 1024,
  /** Characters of one string in evidence. */
  evidenceText: 4096,
  /** Bytes of one byte array in evidence. */
  evidenceBlob: 4096,
  /** Elements of one array and keys of one object in evidence. */
  evidenceItems: 512,
  evidenceDepth: 8,
  cuts: 32,
  /** Artifacts of one finding; past it the oldest are let go. */
  artifacts: 16,
} as const

/** Keeps the list of what was cut. */
export class Cuts {
  readonly #list: string[] = []
  #more = 0

  add(what: string): void {
    if (this.#list.length < FINDING_LIMITS.cuts) this.#list.push(what)
    else this.#more++
  }

  get any(): boolean {
    return this.#list.length > 0
  }

  /** In words, by path. */
  list(): string[] {
    return this.#more > 0 ? [...this.#list, `${this.#more} further cuts`] : [...this.#list]
  }
}

/** A well-formed string of at most `limit` UTF-16 units; a cut is noted and never splits a surrogate pair. */
export function boundText(value: string, limit: number, path: string, cuts: Cuts): string {
  const text = wellFormed(value)
  if (text.length <= limit) return text
  cuts.add(`${path}: ${limit} of ${text.length} characters`)
  return cutText(text, limit)
}

/** The first `limit` UTF-16 units of a well-formed text, less half a surrogate pair. */
export function cutText(text: string, limit: number): string {
  if (text.length <= limit) return text
  const code = text.charCodeAt(limit - 1)
  return text.slice(0, code >= 0xd800 && code <= 0xdbff ? limit - 1 : limit)
}

/** Lone surrogates become U+FFFD: they have no UTF-8, and would differ between the store and the wire. */
export function wellFormed(value: string): string {
  return value.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, '\ufffd')
}

/**
 * Author's evidence as bounded JSON: bigint becomes a `0x…` string, bytes become hexadecimal, Date an ISO string, a number
 * without a finite value a string. Counts bytes over all of one finding's evidence.
 */
export class EvidenceBound {
  readonly #cuts: Cuts
  #left: number = FINDING_LIMITS.evidenceBytes
  #total = 0

  constructor(cuts: Cuts) {
    this.#cuts = cuts
  }

  /** Bytes the evidence would have had, as far as it was looked at. */
  get total(): number {
    return this.#total
  }

  json(value: unknown, path: string, depth = 0): Json {
    if (depth > FINDING_LIMITS.evidenceDepth) {
      this.#cuts.add(`${path}: deeper than ${FINDING_LIMITS.evidenceDepth} levels`)
      return null
    }
    if (value === null || value === undefined) {
      this.#take(4, path)
      return null
    }
    switch (typeof value) {
      case 'boolean':
        this.#take(5, path)
        return value
      case 'number':
        this.#take(12, path)
        // + 0: JSON has no -0.
        return Number.isFinite(value) ? value + 0 : String(value)
      case 'bigint':
        return this.#text(hex(value), path)
      case 'string':
        return this.#text(value, path)
      case 'object':
        return this.#object(value, path, depth)
      default:
        throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `Evidence ${path} is a ${typeof value}, not data`)
    }
  }

  #object(value: object, path: string, depth: number): Json {
    if (value instanceof Uint8Array) return this.#blob(value, path)
    if (value instanceof Date) return this.#text(Number.isNaN(value.getTime()) ? '' : value.toISOString(), path)
    if (value instanceof Map) return this.#object(Object.fromEntries(value), path, depth)
    if (value instanceof Set || ArrayBuffer.isView(value)) {
      return this.#object(Array.from(value as unknown as Iterable<unknown>), path, depth)
    }
    const limit = FINDING_LIMITS.evidenceItems
    if (Array.isArray(value)) {
      if (value.length > limit) this.#cuts.add(`${path}: ${limit} of ${value.length} elements`)
      const items: Json[] = []
      for (const [index, item] of value.slice(0, limit).entries()) {
        if (!this.#room(`${path}: ${index} of ${value.length} elements`)) break
        items.push(this.json(item, `${path}[${index}]`, depth + 1))
      }
      return items
    }
    const names = Object.keys(value)
    if (names.length > limit) this.#cuts.add(`${path}: ${limit} of ${names.length} keys`)
    // No prototype while it is filled: a key `__proto__` stays a key.
    const out: [string, Json][] = []
    for (const [index, name] of names.slice(0, limit).entries()) {
      if (!this.#room(`${path}: ${index} of ${names.length} keys`)) break
      const item = (value as Record<string, unknown>)[name]
      if (item === undefined) continue
      const key = boundText(name, FINDING_LIMITS.label, `${path} key`, this.#cuts)
      this.#take(Buffer.byteLength(JSON.stringify(key)) + 2, path)
      out.push([key, this.json(item, `${path}.${cutText(key, 40)}`, depth + 1)])
    }
    return Object.fromEntries(out)
  }

  #text(value: string, path: string): string {
    const text = boundText(value, FINDING_LIMITS.evidenceText, path, this.#cuts)
    // As JSON: a control character takes six bytes there.
    if (this.#take(Buffer.byteLength(JSON.stringify(text)), path)) return text
    return ''
  }

  #blob(bytes: Uint8Array, path: string): string {
    const limit = FINDING_LIMITS.evidenceBlob
    if (bytes.length > limit) this.#cuts.add(`${path}: ${limit} of ${bytes.length} bytes`)
    const kept = bytes.subarray(0, limit)
    this.#total += 2 * (bytes.length - kept.length)
    return this.#take(2 * kept.length + 2, path) ? Buffer.from(kept).toString('hex') : ''
  }

  #room(what: string): boolean {
    if (this.#left > 0) return true
    this.#cuts.add(`${what} (evidence is over ${FINDING_LIMITS.evidenceBytes} bytes)`)
    return false
  }

  #take(bytes: number, path: string): boolean {
    this.#total += bytes
    if (bytes > this.#left) {
      if (this.#left > 0) this.#cuts.add(`${path}: evidence is over ${FINDING_LIMITS.evidenceBytes} bytes`)
      this.#left = 0
      return false
    }
    this.#left -= bytes
    return true
  }
}

function hex(value: bigint): string {
  return value < 0n ? `-0x${(-value).toString(16)}` : `0x${value.toString(16)}`
}
