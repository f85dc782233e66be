import { profileError } from '../errors.js'
import type { Tokens } from './tokens.js'
import type { Window } from './window.js'

/** Where kallsyms' compressed names lie. */
export interface NamesPlace {
  readonly count: number
  /** Position of `kallsyms_num_syms`. */
  readonly countAt: number
  readonly names: number
}

/** Names decoded, in kallsyms' (address) order. */
export interface Names {
  readonly count: number
  readonly letters: Uint8Array
  readonly starts: Uint32Array
  readonly bytes: Uint8Array
}

/** More symbols than any kernel has (Debian 6.1: 189,000); and bytes of one name (KSYM_NAME_LEN is 512). */
const MAX_SYMBOLS = 2_000_000
const MAX_NAME = 1024
const MAX_NAME_BYTES = 64 * 1024 * 1024
/** How far before the token table its names may start. */
const REACH = 24 * 1024 * 1024
const MARKER_STEP = 256

const align8 = (at: number): number => (at + 7) & ~7

/** nm(1) letters: text, data, read-only, bss, absolute, weak, … */
function isLetter(code: number): boolean {
  return (code >= 0x41 && code <= 0x5a) || (code >= 0x61 && code <= 0x7a) || code === 0x3f
}

/**
 * Finds `kallsyms_num_syms` and the names before a token table, in any of the layouts: what counts is that so many
 * names lead to markers that agree with them, and these (5.10 and later; 6.2 puts three bytes a symbol between) to the
 * table. Source: scripts/kallsyms.c.
 */
export function findNames(window: Window, tokens: Tokens): NamesPlace | undefined {
  const lowest = Math.max(0, tokens.table - REACH)
  const step = 512 * 1024
  for (let top = tokens.table; top > lowest; top -= step) {
    const bottom = Math.max(lowest, top - step)
    const start = bottom + ((8 - (bottom % 8)) % 8)
    const piece = window.read(bottom, Math.min(top + 8, window.size) - bottom, 'kallsyms_names')
    for (let at = start + Math.floor((top - 8 - start) / 8) * 8; at >= start; at -= 8) {
      const count = piece.readUInt32LE(at - bottom)
      if (count < 1 || count > MAX_SYMBOLS || 2 * count > tokens.table - at) continue
      if (piece.readUInt32LE(at - bottom + 4) !== 0) continue
      if (leadsToTable(window, tokens, at, count)) return { count, countAt: at, names: at + 8 }
    }
  }
  return undefined
}

function leadsToTable(window: Window, tokens: Tokens, countAt: number, count: number): boolean {
  const names = window.read(countAt + 8, tokens.table - countAt - 8, 'kallsyms_names')
  const markers = new Uint32Array(Math.ceil(count / MARKER_STEP))
  let at = 0
  for (let i = 0; i < count; i++) {
    if (i % MARKER_STEP === 0) markers[i / MARKER_STEP] = at
    let length = names[at++]
    if (length === undefined || length === 0) return false
    if (length & 0x80) length = (length & 0x7f) | ((names[at++] ?? 0) << 7)
    if (i < 64) {
      const first = tokens.bytes[tokens.starts[names[at] ?? 0] as number]
      if (first === undefined || !isLetter(first)) return false
    }
    at += length
    if (at > names.length) return false
  }
  const place = align8(at)
  if (place + 4 * markers.length > names.length) return false
  for (const [i, marker] of markers.entries()) if (names.readUInt32LE(place + 4 * i) !== marker) return false
  const rest = names.length - align8(place + 4 * markers.length)
  return rest === 0 || (rest >= 3 * count && rest < 3 * count + 16) || (rest > 0 && rest < 8)
}

/** Decodes the names. @throws ERR_CLOUDAPP_PROFILE naming the symbol where the table breaks */
export function decodeNames(window: Window, tokens: Tokens, place: NamesPlace): Names {
  const bad = (what: string) => profileError('kallsyms_names', what)
  const { count } = place
  if (count < 1 || count > MAX_SYMBOLS) throw bad(`${count} symbols, at most ${MAX_SYMBOLS}`)
  // The token table lies behind the names in every layout.
  const end = tokens.table > place.names ? tokens.table : Math.min(window.size, place.names + REACH)
  if (end - place.names > 2 * REACH) throw bad(`the token table is ${end - place.names} bytes behind the names`)
  const packed = window.read(place.names, end - place.names, 'kallsyms_names')
  const letters = new Uint8Array(count)
  const starts = new Uint32Array(count + 1)
  let bytes = new Uint8Array(Math.min(MAX_NAME_BYTES, count * 24 + MAX_NAME))
  const { bytes: tokenBytes, starts: tokenStarts } = tokens
  let at = 0
  let out = 0
  for (let i = 0; i < count; i++) {
    starts[i] = out
    let length = packed[at++]
    if (length === undefined || length === 0) throw bad(`symbol ${i} of ${count} has no length`)
    if (length & 0x80) length = (length & 0x7f) | ((packed[at++] ?? 0) << 7)
    if (at + length > packed.length) throw bad(`symbol ${i} of ${count} runs past the table`)
    if (out + 2 * MAX_NAME > bytes.length) {
      if (bytes.length * 2 > MAX_NAME_BYTES) throw bad(`the names expand to more than ${MAX_NAME_BYTES} bytes`)
      const larger = new Uint8Array(bytes.length * 2)
      larger.set(bytes)
      bytes = larger
    }
    let letter = 0
    for (const stop = at + length; at < stop; at++) {
      const token = packed[at] as number
      let from = tokenStarts[token] as number
      const to = (tokenStarts[token + 1] as number) - 1
      if (letter === 0 && from < to) letter = tokenBytes[from++] as number
      if (out + (to - from) - (starts[i] as number) > MAX_NAME)
        throw bad(`symbol ${i} of ${count} is longer than ${MAX_NAME} bytes`)
      while (from < to) bytes[out++] = tokenBytes[from++] as number
    }
    letters[i] = letter & 0x7f
  }
  starts[count] = out
  return { count, letters, starts, bytes }
}
