import { checkInteger, checkLimit, checkRange, checkSpace, invalid } from './local-check.js'
import { ended, type Operation, type Slice, scratch, type Workspace, word } from './local-operation.js'
import type { SearchRequest, SearchResult } from './memory.js'

const ROWS = 1024
const PATTERN_BYTES = 264

/** Finds byte patterns. */
export class SearchOperation implements Operation<SearchResult> {
  readonly #request: SearchRequest
  readonly #last: bigint
  readonly #align: number
  readonly #offset: number
  readonly #patterns: Uint8Array
  readonly #matches: { readonly pattern: number; readonly at: bigint }[] = []
  #end: SearchResult['end'] = 'complete'
  #next = 0n

  constructor(request: SearchRequest) {
    checkSpace(request.space)
    this.#last = checkRange(request.start, request.end)
    checkInteger('limit', request.limit, 1)
    checkLimit('matches', request.limit)
    const { patterns, align = 1, offset = 0 } = request
    if (patterns.length === 0) throw invalid('a search needs at least one pattern')
    checkLimit('patterns', patterns.length)
    checkInteger('align', align, 1)
    checkInteger('offset', offset)
    if (align > 0x8000_0000 || !Number.isInteger(Math.log2(align)))
      throw invalid('align must be a power of two up to 2^31')
    if (offset >= align) throw invalid('offset must be below align')
    this.#patterns = new Uint8Array(patterns.length * PATTERN_BYTES)
    const view = new DataView(this.#patterns.buffer)
    for (const [i, pattern] of patterns.entries()) {
      if (pattern.length === 0) throw invalid('a pattern must have at least one byte')
      checkLimit('patternLength', pattern.length)
      view.setUint32(i * PATTERN_BYTES, pattern.length, true)
      this.#patterns.set(pattern, i * PATTERN_BYTES + 8)
    }
    this.#request = request
    this.#align = align
    this.#offset = offset
  }

  step({ shim, handle, flags, budget }: Slice, workspace: Workspace): boolean {
    const { space, start, patterns, limit } = this.#request
    const out = scratch(workspace, ROWS * 16)
    const result = shim.ca_search(
      handle,
      flags,
      budget,
      space,
      start,
      this.#last,
      this.#patterns,
      patterns.length,
      this.#align,
      this.#offset,
      limit,
      out,
      ROWS,
      workspace.cursor,
      workspace.status,
    )
    const done = ended(shim, result)
    const count = word(workspace, 0)
    const view = new DataView(out.buffer, out.byteOffset)
    for (let row = 0; row < count; row++) {
      this.#matches.push({ pattern: view.getUint32(row * 16 + 8, true), at: view.getBigUint64(row * 16, true) })
    }
    if (done) {
      this.#end = word(workspace, 1) === 0 ? 'complete' : 'limit'
      this.#next = this.#end === 'limit' ? (workspace.status[2] ?? 0n) : this.#request.end
    }
    return done
  }

  result(consistent: boolean): SearchResult {
    return { matches: this.#matches, end: this.#end, next: this.#next, consistent }
  }
}
