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
/** How far before the token table its names may start (Debian 7.2: 3 MiB); nearer places are tried first. */
const REACHES = [4 * 1024 * 1024, 24 * 1024 * 1024]
const REACH = 24 * 1024 * 1024
const MARKER_STEP = 256

const align = (at: number, to: number): number => Math.ceil(at / to) * to

/** nm(1) letters: text, data, read-only, bss, absolute, weak, … */
function isLetter(code: number): boolean {
  return (code >= 0x41 && code <= 0x5a) || (code >= 0x61 && code <= 0x7a) || code === 0x3f
}

/**
 * Finds `kallsyms_num_syms` and the names before a token table, in any of the layouts: what counts is that so many
 * names lead to markers that agree with them, and these (5.10 and later; 6.2 puts three bytes a symbol between) to the
 * table. Tables are aligned to 8 bytes, since 7.0 to 4. Source: scripts/kallsyms.c.
 */
export function findNames(window: Window, tokens: Tokens): NamesPlace | undefined {
  for (const reach of REACHES) {
    const base = Math.max(0, tokens.table - reach)
    const before = window.read(base, tokens.table - base, 'kallsyms_names')
    const start = base % 4 === 0 ? 0 : 4 - (base % 4)
    for (let at = start + Math.floor((before.length - 8 - start) / 4) * 4; at >= start; at -= 4) {
      const count = before.readUInt32LE(at)
      if (count < 1 || count > MAX_SYMBOLS || 2 * count > before.length - at) continue
      for (const gap of before.readUInt32LE(at + 4) === 0 ? [8, 4] : [4])
        if (leadsToTable(before, base, at + gap, count, tokens))
          return { count, countAt: base + at, names: base + at + gap }
    }
    if (base === 0) break
  }
  return undefined
}

/** True if `count` names at `start` of `bytes` (which end at the token table, and lie at `base`) lead to their markers. */
function leadsToTable(bytes: Buffer, base: number, start: number, count: number, tokens: Tokens): boolean {
  const markers: number[] = []
  let at = start
  for (let i = 0; i < count; i++) {
    if (i % MARKER_STEP === 0) markers.push(at - start)
    let length = bytes[at++]
    if (length === undefined || length === 0) return false
    if (length & 0x80) length = (length & 0x7f) | ((bytes[at++] ?? 0) << 7)
    if (i < 64) {
      const first = tokens.bytes[tokens.starts[bytes[at] ?? 0] as number]
      if (first === undefined || !isLetter(first)) return false
    }
    at += length
    if (at > bytes.length) return false
  }
  for (const alignment of [8, 4]) {
    const place = align(base + at, alignment) - base
    const end = place + 4 * markers.length
    if (end > bytes.length) continue
    if (markers.some((marker, i) => bytes.readUInt32LE(place + 4 * i) !== marker)) continue
    const rest = bytes.length - end
    if (rest < 8 || (rest >= 3 * count && rest < 3 * count + 16)) return true
  }
  return false
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
