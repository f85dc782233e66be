import { checkLimit, checkRange, checkSpace, invalid } from './local-check.js'
import { ended, type Operation, type Slice, type Workspace } from './local-operation.js'
import type { DigestRequest, DigestResult } from './memory.js'

/** Hashes pages where they are. */
export class DigestOperation implements Operation<DigestResult> {
  readonly #request: DigestRequest
  readonly #pages: number
  readonly #digests: Uint8Array
  readonly #present: Uint8Array

  constructor(request: DigestRequest) {
    checkSpace(request.space)
    checkRange(request.start, request.end)
    if (((request.start | request.end) & 0xfffn) !== 0n) throw invalid('start and end must be page aligned')
    this.#pages = Number((request.end - request.start) >> 12n)
    checkLimit('digestPages', this.#pages)
    this.#request = request
    this.#digests = new Uint8Array(this.#pages * 32)
    this.#present = new Uint8Array(this.#pages)
  }

  step({ shim, handle, flags, budget }: Slice, workspace: Workspace): boolean {
    const { space, start } = this.#request
    return ended(
      shim,
      shim.ca_digest(
        handle,
        flags,
        budget,
        space,
        start,
        this.#pages,
        this.#digests,
        this.#present,
        workspace.cursor,
        workspace.status,
      ),
    )
  }

  result(consistent: boolean): DigestResult {
    return { pages: this.#pages, digests: this.#digests, present: this.#present, consistent }
  }
}
