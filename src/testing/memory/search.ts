import { LIMITS, type SearchRequest, type SearchResult } from '../../vmi/memory.js'
import { checkInteger, checkLimit, checkRange, invalid, splitSpace } from './checks.js'
import type { PageWalker } from './paging.js'

/** A part of the searched range whose bytes lie in RAM one after the other. */
interface Extent {
  readonly at: bigint
  readonly physical: number
  readonly size: number
}

type Found = Omit<SearchResult, 'consistent'>

/** Bytes of mapped memory that are put together for one pass. */
const WINDOW = 1024 * 1024

/** Mapped bytes one call looks through: page tables that point at themselves map a page millions of times. */
const SCAN_BYTES = 1024 ** 3

/** The `search` verb over a buffer of RAM. Matches come in the order of their addresses. */
export function findMatches(ram: Uint8Array, walker: PageWalker, request: SearchRequest): Found {
  checkRange(request.start, request.end)
  checkInteger('limit', request.limit, 1)
  checkLimit('matches', request.limit)
  checkLimit('patterns', request.patterns.length)
  if (request.patterns.length === 0) throw invalid('search needs at least one pattern')
  for (const pattern of request.patterns) {
    checkLimit('patternLength', pattern.byteLength)
    if (pattern.byteLength === 0) throw invalid('a pattern needs at least one byte')
  }
  const { align = 1, offset = 0 } = request
  checkInteger('align', align, 1)
  if (Math.log2(align) % 1 !== 0) throw invalid(`align ${align} is not a power of two`)
  checkInteger('offset', offset, 0)
  if (offset >= align) throw invalid(`offset ${offset} must be below align ${align}`)
  const { root, levels } = splitSpace(request.space)
  const finder = new Finder(request, BigInt(align), BigInt(offset))
  if (levels === 0) {
    const end = request.end < BigInt(ram.byteLength) ? Number(request.end) : ram.byteLength
    const start = Number(request.start)
    if (start < end) finder.scan(request.start, ram.subarray(start, end))
    return finder.result()
  }
  let run: Extent[] = []
  let bytes = 0
  let scanned = 0
  const flush = (keep: number): boolean => {
    if (run.length === 0) return true
    const joined = new Uint8Array(bytes)
    let to = 0
    for (const { physical, size } of run) {
      joined.set(ram.subarray(physical, physical + size), to)
      to += size
    }
    const base = (run[0] as Extent).at
    const more = finder.scan(base, joined, keep > 0)
    const tail = Math.min(keep, bytes)
    run = tail > 0 ? tailOf(run, tail) : []
    bytes = tail
    return more
  }
  const overlap = LIMITS.patternLength - 1
  const stopped = walker.mappings(root, levels, request.start, request.end, (m) => {
    if (scanned >= SCAN_BYTES) return false
    for (let done = 0; done < m.size; ) {
      const at = m.virtual + BigInt(done)
      const last = run.at(-1)
      if (last !== undefined && last.at + BigInt(last.size) !== at && !flush(0)) return false
      const physical = m.physical + done
      const size = Math.min(m.size - done, WINDOW, ram.byteLength - physical)
      if (size <= 0) break
      run.push({ at, physical, size })
      bytes += size
      scanned += size
      done += size
      if (bytes >= WINDOW && !flush(overlap)) return false
    }
    return true
  })
  if (!finder.full) flush(0)
  return finder.result(finder.full ? undefined : stopped)
}

/** The last `size` bytes of a run. */
function tailOf(run: readonly Extent[], size: number): Extent[] {
  const tail: Extent[] = []
  let left = size
  for (let i = run.length - 1; i >= 0 && left > 0; i--) {
    const extent = run[i] as Extent
    const take = Math.min(left, extent.size)
    const skip = extent.size - take
    tail.unshift({ at: extent.at + BigInt(skip), physical: extent.physical + skip, size: take })
    left -= take
  }
  return tail
}

class Finder {
  readonly #matches: { pattern: number; at: bigint }[] = []
  #next: bigint | undefined
  #from: bigint

  constructor(
    readonly request: SearchRequest,
    readonly align: bigint,
    readonly offset: bigint,
  ) {
    this.#from = request.start
  }

  /** True once the limit cut the search. */
  get full(): boolean {
    return this.#next !== undefined
  }

  /** Looks through one contiguous part; with `more`, matches that start in its last bytes wait for the next part. */
  scan(base: bigint, bytes: Uint8Array, more = false): boolean {
    const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    const until = more ? bytes.byteLength - (LIMITS.patternLength - 1) : bytes.byteLength
    const found: { pattern: number; at: bigint }[] = []
    this.request.patterns.forEach((pattern, index) => {
      let left = this.request.limit + 1
      for (let at = buffer.indexOf(pattern); at >= 0 && at < until && left > 0; at = buffer.indexOf(pattern, at + 1)) {
        const address = base + BigInt(at)
        if (address < this.#from || (address & (this.align - 1n)) !== this.offset) continue
        found.push({ pattern: index, at: address })
        left--
      }
    })
    found.sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : a.pattern - b.pattern))
    for (let i = 0; i < found.length; ) {
      const at = (found[i] as { at: bigint }).at
      const group = found.slice(i, i + this.request.patterns.length).filter((match) => match.at === at)
      const room = this.request.limit - this.#matches.length
      // The patterns of one address are given together, so that going on there neither loses nor repeats one.
      if (group.length > room && this.#matches.length > 0) {
        this.#next = at
        return false
      }
      this.#matches.push(...group.slice(0, room))
      if (group.length > room) {
        this.#next = at + 1n
        return false
      }
      i += group.length
    }
    this.#from = base + BigInt(Math.max(until, 0)) > this.#from ? base + BigInt(Math.max(until, 0)) : this.#from
    return true
  }

  result(stopped?: bigint): Found {
    const next = this.#next ?? stopped
    return { matches: this.#matches, end: next === undefined ? 'complete' : 'limit', next: next ?? this.request.end }
  }
}
