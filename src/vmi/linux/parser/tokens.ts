import { profileError } from '../errors.js'
import type { Window } from './window.js'

/** kallsyms' token table, decoded: scripts/kallsyms.c, write_src(). */
export interface Tokens {
  /** Position of the table, and of the index behind it. */
  readonly table: number
  readonly index: number
  /** The strings one after the other, each ended by NUL. */
  readonly bytes: Uint8Array
  /** Start of each of the 256 strings in `bytes`, and one past the end of the last. */
  readonly starts: Uint16Array
}

const TOKENS = 256
/** Tokens are short (a name is at most 511 bytes); real tables have 0.9 to 1.1 KiB. */
const MAX_TABLE = 32_768
const INDEX_BYTES = 2 * TOKENS

const align = (at: number, to: number): number => Math.ceil(at / to) * to

/** Checks that the strings and the index agree. */
function check(window: Window, table: number, index: number): Tokens | undefined {
  const size = index - table
  if (size < TOKENS || size > MAX_TABLE || !window.holds(table, size + INDEX_BYTES)) return undefined
  const bytes = window.read(table, size, 'kallsyms_token_table')
  const entries = window.read(index, INDEX_BYTES, 'kallsyms_token_index')
  const starts = new Uint16Array(TOKENS + 1)
  let at = 0
  for (let token = 0; token < TOKENS; token++) {
    if (entries.readUInt16LE(2 * token) !== at) return undefined
    starts[token] = at
    const end = bytes.indexOf(0, at)
    if (end < 0) return undefined
    at = end + 1
  }
  starts[TOKENS] = at
  // Nothing but padding may stand between the two.
  for (let i = at; i < size; i++) if (bytes[i] !== 0) return undefined
  return { table, index, bytes, starts }
}

/** Reads the table where it is named. @throws ERR_CLOUDAPP_PROFILE if it is none */
export function namedTokens(window: Window, table: number, index: number): Tokens {
  const tokens = check(window, table, index)
  if (tokens === undefined)
    throw profileError('kallsyms_token_table', `the token table at image offset ${table} and its index disagree`)
  return tokens
}

/**
 * Finds the table around the tokens `0` … `9`: characters that symbols use stand for themselves, at their own position.
 * `digits` is where `"0\0" "1\0" … "9\0"` was found.
 */
export function tokensByShape(window: Window, digits: number): Tokens | undefined {
  const room = Math.min(MAX_TABLE, window.size - digits)
  if (room <= 0) return undefined
  const rest = window.read(digits, room, 'kallsyms_token_table')
  let at = 0
  for (let token = 0x30; token < TOKENS; token++) {
    const end = rest.indexOf(0, at)
    if (end < 0) return undefined
    at = end + 1
  }
  for (const alignment of [8, 4, 2]) {
    const index = align(digits + at, alignment)
    if (!window.holds(index, INDEX_BYTES)) continue
    const before = window.read(index, INDEX_BYTES, 'kallsyms_token_index').readUInt16LE(2 * 0x30)
    if (before > digits) continue
    const tokens = check(window, digits - before, index)
    if (tokens !== undefined) return tokens
  }
  return undefined
}
