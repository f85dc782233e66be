import { checkInteger, checkLimit, checkRange, checkSpace, invalid } from './local-check.js'
import { ended, join, join64, type Operation, type Slice, scratch, type Workspace, word } from './local-operation.js'
import { type PagesRequest, type PagesResult, PHYSICAL } from './memory.js'

const ROWS = 2048
const ROW_BYTES = 25

/** Enumerates the mappings of a virtual range. */
export class PagesOperation implements Operation<PagesResult> {
  readonly #request: PagesRequest
  readonly #last: bigint
  readonly #parts: Uint8Array[][] = [[], [], []]
  readonly #flags: Uint8Array[] = []
  #runs = 0
  #end: PagesResult['end'] = 'complete'
  #next = 0n

  constructor(request: PagesRequest) {
    checkSpace(request.space)
    if (request.space === PHYSICAL) throw invalid('physical memory has no mappings: pages needs a virtual space')
    this.#last = checkRange(request.start, request.end)
    checkInteger('limit', request.limit, 1)
    checkLimit('pagesRuns', request.limit)
    checkInteger('want', request.want ?? 0)
    if ((request.want ?? 0) > 7) throw invalid('want has bits that are no PageFlags')
    this.#request = request
  }

  step({ shim, handle, flags, budget }: Slice, workspace: Workspace): boolean {
    const { space, start, want = 0, limit } = this.#request
    const out = scratch(workspace, ROWS * ROW_BYTES)
    const result = shim.ca_pages(
      handle,
      flags,
      budget,
      space,
      start,
      this.#last,
      want,
      limit,
      out,
      ROWS,
      workspace.cursor,
      workspace.status,
    )
    const done = ended(shim, result)
    const count = word(workspace, 0)
    if (count > 0) {
      this.#runs += count
      for (const [i, parts] of this.#parts.entries()) parts.push(out.slice(i * ROWS * 8, i * ROWS * 8 + count * 8))
      this.#flags.push(out.slice(ROWS * 24, ROWS * 24 + count))
    }
    if (done) {
      this.#end = word(workspace, 1) === 0 ? 'complete' : 'limit'
      this.#next = this.#end === 'limit' ? (workspace.status[2] ?? 0n) : this.#request.end
    }
    return done
  }

  result(consistent: boolean): PagesResult {
    const [virtual = [], physical = [], sizes = []] = this.#parts
    return {
      runs: this.#runs,
      virtual: join64(virtual),
      physical: join64(physical),
      sizes: join64(sizes),
      flags: join(this.#flags),
      end: this.#end,
      next: this.#next,
      consistent,
    }
  }
}
