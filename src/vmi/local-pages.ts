import { checkInteger, checkLimit, checkRange, checkSpace, invalid } from './local-check.js'
import { ended, type Operation, type Slice, scratch, type Workspace, word } from './local-operation.js'
import { Table, words } from './local-table.js'
import { type PagesRequest, type PagesResult, PHYSICAL } from './memory.js'

const ROWS = 2048
const ROW_BYTES = 25

/** Enumerates the mappings of a virtual range. */
export class PagesOperation implements Operation<PagesResult> {
  readonly #request: PagesRequest
  readonly #last: bigint
  /** Virtual, physical, size, flags. */
  readonly #table = new Table([8, 8, 8, 1])
  #found = false
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

  step(slice: Slice, workspace: Workspace): boolean {
    if (this.#found) return this.#table.join()
    this.#found = this.#find(slice, workspace)
    return this.#found && this.#table.whole
  }

  #find({ shim, handle, flags, budget }: Slice, workspace: Workspace): boolean {
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
    this.#table.add(out, word(workspace, 0))
    if (done) {
      this.#end = word(workspace, 1) === 0 ? 'complete' : 'limit'
      this.#next = this.#end === 'limit' ? (workspace.status[2] ?? 0n) : this.#request.end
    }
    return done
  }

  result(consistent: boolean): PagesResult {
    const [virtual, physical, sizes, flags] = this.#table.columns() as [Uint8Array, Uint8Array, Uint8Array, Uint8Array]
    return {
      runs: this.#table.rows,
      virtual: words(virtual),
      physical: words(physical),
      sizes: words(sizes),
      flags,
      end: this.#end,
      next: this.#next,
      consistent,
    }
  }
}
