import { createHash } from 'node:crypto'
import { CloudAppError } from '../../errors.js'
import { AUDIT_LIMITS, type AuditEntry, type AuditOutcome, type AuditRecord } from './types.js'

// A line is the record's hash, a blank, its JSON, a newline. The hash is over the JSON's bytes as they stand, so that
// nobody has to agree on how JSON is spelled; the JSON names the hash of the record before.
const CONTEXT = 'cloudapp audit record v1\0'
const HASH_LETTERS = 64

/** What stands before the first record. */
export const NO_HASH = '0'.repeat(HASH_LETTERS)

const OUTCOMES: ReadonlySet<unknown> = new Set<AuditOutcome>(['allowed', 'refused', 'failed'])

export interface EncodedRecord {
  /** With its newline. */
  readonly line: string
  readonly hash: string
}

const ENTRY_FIELDS = ['action', 'outcome', 'vm', 'right', 'block', 'holder', 'session', 'peer', 'code'] as const

export function encodeRecord(seq: number, prev: string, time: string, mono: bigint, entry: AuditEntry): EncodedRecord {
  const json = JSON.stringify({ seq, time, mono: `${mono}`, prev, entry: plainEntry(entry) })
  const hash = hashOf(json)
  return { line: `${hash} ${json}\n`, hash }
}

export type DecodedLine = { readonly record: AuditRecord } | { readonly fault: 'changed' | 'malformed' }

/** Reads a line without its newline. Total: whatever the bytes, the outcome is a record or a fault. */
export function decodeLine(bytes: Uint8Array): DecodedLine {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  const hash = text.toString('latin1', 0, HASH_LETTERS)
  if (!/^[0-9a-f]{64}$/.test(hash) || text[HASH_LETTERS] !== 0x20) return { fault: 'malformed' }
  const json = text.subarray(HASH_LETTERS + 1)
  if (hashOf(json) !== hash) return { fault: 'changed' }
  let value: unknown
  try {
    value = JSON.parse(json.toString('utf8'))
  } catch {
    return { fault: 'malformed' }
  }
  return isBody(value) ? { record: { ...value, hash } } : { fault: 'malformed' }
}

function isBody(value: unknown): value is Omit<AuditRecord, 'hash'> {
  if (typeof value !== 'object' || value === null) return false
  const { seq, time, mono, prev, entry } = value as Record<string, unknown>
  if (!Number.isSafeInteger(seq) || (seq as number) < 1 || typeof time !== 'string' || typeof mono !== 'string')
    return false
  if (typeof prev !== 'string' || !/^[0-9a-f]{64}$/.test(prev)) return false
  return isEntry(entry)
}

function isEntry(value: unknown): value is AuditEntry {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  const entry = value as Record<string, unknown>
  if (typeof entry.action !== 'string' || !OUTCOMES.has(entry.outcome)) return false
  if (ENTRY_FIELDS.some((field) => entry[field] !== undefined && typeof entry[field] !== 'string')) return false
  const { details } = entry
  if (details === undefined) return true
  if (typeof details !== 'object' || details === null || Array.isArray(details)) return false
  return Object.values(details).every((fact) => ['string', 'number', 'boolean'].includes(typeof fact))
}

function hashOf(json: string | Uint8Array): string {
  return createHash('sha256').update(CONTEXT).update(json).digest('hex')
}

function plainEntry(entry: AuditEntry): Record<string, unknown> {
  const out: Record<string, unknown> = {}
  for (const field of ENTRY_FIELDS) {
    const value = entry[field]
    if (value !== undefined) out[field] = cut(value)
  }
  if (entry.details !== undefined) {
    const facts = Object.entries(entry.details)
    if (facts.length > AUDIT_LIMITS.details) {
      throw new CloudAppError(
        'ERR_CLOUDAPP_INVALID_ARGUMENT',
        `an audit record has at most ${AUDIT_LIMITS.details} details`,
      )
    }
    out.details = Object.fromEntries(facts.map(([name, value]) => [cut(name), plainValue(value)]))
  }
  return out
}

function plainValue(value: string | number | bigint | boolean): string | number | boolean {
  if (typeof value === 'bigint') return `0x${value.toString(16)}`
  return typeof value === 'string' ? cut(value) : value
}

function cut(text: string): string {
  return text.length <= AUDIT_LIMITS.text ? text : `${text.slice(0, AUDIT_LIMITS.text)}…`
}
