import { checkAddress, checkLimit, checkSpace, invalid } from './local-check.js'
import { ended, fault, type Operation, type Slice, type Workspace, word } from './local-operation.js'
import type { Fault, WriteRequest, WriteResult } from './memory.js'

/** Checks a batch of writes before any of it is done. */
export function checkWrites(requests: readonly WriteRequest[]): void {
  checkLimit('batch', requests.length)
  let bytes = 0
  for (const request of requests) {
    checkSpace(request.space)
    checkAddress('at', request.at)
    if (!(request.bytes instanceof Uint8Array)) throw invalid('bytes must be a Uint8Array')
    checkLimit('readLength', request.bytes.length)
    bytes += request.bytes.length
  }
  checkLimit('resultBytes', bytes)
}

/** One write. */
export class WriteOperation implements Operation<WriteResult> {
  readonly #request: WriteRequest
  #written = 0
  #fault: Fault | undefined

  constructor(request: WriteRequest) {
    this.#request = request
  }

  step({ shim, handle, flags, budget }: Slice, workspace: Workspace): boolean {
    const { space, at, bytes } = this.#request
    if (bytes.length === 0) return true
    const result = shim.ca_write(
      handle,
      flags,
      budget,
      space,
      at,
      bytes,
      bytes.length,
      workspace.cursor,
      workspace.status,
    )
    const done = ended(shim, result)
    this.#written = word(workspace, 0)
    const reason = word(workspace, 1)
    if (reason !== 0) {
      this.#fault = fault(reason, word(workspace, 2), workspace.status[3] ?? 0n, workspace.status[4] ?? 0n)
    }
    return done
  }

  result(): WriteResult {
    return { written: this.#written, ...(this.#fault === undefined ? {} : { fault: this.#fault }) }
  }
}
