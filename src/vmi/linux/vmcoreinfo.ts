import type { GuestMemory } from '../memory.js'
import { PHYSICAL } from '../memory.js'

/** A VMCOREINFO text: `KEY=value` lines. Source: kernel/vmcore_info.c (crash_core.c before 6.9). */
export interface Vmcoreinfo {
  /** Physical address the text was found at. */
  readonly at: bigint
  readonly release: string
  /** Hexadecimal; '' where the kernel gives none (before 5.15). */
  readonly buildId: string
  /** Virtual address of a `SYMBOL(name)`. */
  symbol(name: string): bigint | undefined
  /** Value of a `NUMBER(name)`. */
  number(name: string): bigint | undefined
}

const MARK = Buffer.from('OSRELEASE=')
/** VMCOREINFO_BYTES is a page; it has been as small as that since 2.6. */
const PAGE = 4096
/** RAM searched at once: a hit near the end, where the page usually lies, ends the search early. */
const PIECE = 256n * 1024n * 1024n
/** Copies looked at: a guest may hold files full of them. */
const MAX_COPIES = 256

/** Reads a text, ignoring lines that are no `KEY=value`. Undefined if it has not the lines every kernel writes. */
export function parseVmcoreinfo(bytes: Uint8Array, at: bigint): Vmcoreinfo | undefined {
  const end = bytes.indexOf(0)
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, end < 0 ? bytes.length : end).toString('latin1')
  const entries = new Map<string, string>()
  for (const line of text.split('\n')) {
    const equals = line.indexOf('=')
    if (equals > 0) entries.set(line.slice(0, equals), line.slice(equals + 1))
  }
  const release = entries.get('OSRELEASE')
  if (release === undefined || !/^[\x21-\x7e]{1,64}$/.test(release) || entries.get('PAGESIZE') !== '4096')
    return undefined
  const buildId = entries.get('BUILD-ID') ?? ''
  return {
    at,
    release,
    buildId: /^(?:[0-9a-f]{2}){8,64}$/.test(buildId) ? buildId : '',
    symbol(name) {
      const value = entries.get(`SYMBOL(${name})`)
      return value !== undefined && /^[0-9a-f]{1,16}$/.test(value) ? BigInt(`0x${value}`) : undefined
    },
    number(name) {
      const value = entries.get(`NUMBER(${name})`)
      return value !== undefined && /^-?\d{1,20}$/.test(value) ? BigInt(value) : undefined
    },
  }
}

export interface VmcoreinfoSearch {
  /** Those that do not start a page, instead of those that do. */
  readonly unaligned?: boolean
  readonly signal?: AbortSignal | undefined
  /** Asked after each piece of RAM: true ends the search. */
  readonly enough?: () => Promise<boolean>
}

/**
 * Finds VMCOREINFO texts in RAM, from its end downwards. There may be stale ones, of an earlier boot or in somebody's
 * file: the caller tries each.
 */
export async function* findVmcoreinfo(memory: GuestMemory, options: VmcoreinfoSearch = {}): AsyncGenerator<Vmcoreinfo> {
  const call = options.signal === undefined ? {} : { signal: options.signal }
  let copies = 0
  for (let end = memory.end; end > 0n; end -= PIECE) {
    const start = end > PIECE ? end - PIECE : 0n
    const align = options.unaligned ? {} : { align: PAGE, offset: 0 }
    // A text that starts in this piece may end in the next one.
    const reach = end + BigInt(MARK.length) > memory.end ? memory.end : end + BigInt(MARK.length)
    const found = await memory.search(
      { space: PHYSICAL, start, end: options.unaligned ? reach : end, patterns: [MARK], limit: MAX_COPIES, ...align },
      call,
    )
    for (const { at } of found.matches.toReversed()) {
      if (options.unaligned && at % BigInt(PAGE) === 0n) continue
      if (++copies > MAX_COPIES) return
      const length = Number(at + BigInt(PAGE) > memory.end ? memory.end - at : BigInt(PAGE))
      const [result] = await memory.read([{ space: PHYSICAL, at, length }], call)
      const info = result === undefined ? undefined : parseVmcoreinfo(result.bytes, at)
      if (info !== undefined) yield info
    }
    if (options.enough !== undefined && (await options.enough())) return
  }
}
