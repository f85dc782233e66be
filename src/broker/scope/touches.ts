import type { Grant } from '../../capabilities/caveats.js'
import { type AddressRange, MAX_ADDRESS, rangesCover } from '../../capabilities/ranges.js'
import type { Right } from '../../capabilities/rights.js'
import { CloudAppError } from '../../errors.js'
import { PHYSICAL, type ReadRequest, type Space } from '../../vmi/memory.js'

/** One stretch of memory an operation touches; `end` is exclusive. */
export interface Touch {
  readonly space: Space
  readonly start: bigint
  readonly end: bigint
}

/** True if the grant reaches only some of the memory. */
export function isScoped(grant: Grant): boolean {
  return grant.memory !== undefined || grant.processes !== undefined
}

/**
 * Refuses what can be judged before anything is done: physical memory outside the grant's ranges, and virtual memory
 * where it has none. Whose a virtual address is, is judged with the guest at hand (access.ts).
 *
 * @throws CloudAppError `ERR_CLOUDAPP_DENIED`
 */
export function checkBefore(grant: Grant, right: Right, touches: Iterable<Touch>): void {
  if (!isScoped(grant)) return
  const { physical = [], kernel = [], process = [] } = grant.memory ?? {}
  const anyVirtual = kernel.length + process.length > 0
  for (const { space, start, end } of touches) {
    if (!(space === PHYSICAL ? reaches(physical, start, end) : anyVirtual)) throw outOfScope(right, start, space)
  }
}

/** Refuses every touch that `ranges` do not cover. @throws CloudAppError `ERR_CLOUDAPP_DENIED` */
export function checkTouches(
  rangesOf: (space: Space) => readonly AddressRange[],
  right: Right,
  touches: Iterable<Touch>,
): void {
  for (const { space, start, end } of touches) {
    if (reaches(rangesOf(space), start, end)) continue
    throw outOfScope(right, start, space)
  }
}

/** True if `ranges` cover `[start, end)`, which may run over the end of the address space and on at its start. */
export function reaches(ranges: readonly AddressRange[], start: bigint, end: bigint): boolean {
  // Nothing is touched; that such a range makes no sense, the memory says.
  if (end <= start) return true
  if (end - 1n <= MAX_ADDRESS) return rangesCover(ranges, start, end - 1n)
  return rangesCover(ranges, start, MAX_ADDRESS) && rangesCover(ranges, 0n, end - 2n - MAX_ADDRESS)
}

export function outOfScope(right: Right, address: bigint, space: Space): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_DENIED', 'The capability does not reach this memory', {
    right,
    address: BigInt.asUintN(64, address),
    details: { space: space === PHYSICAL ? 'physical' : 'virtual', held: 'some of the memory' },
  })
}

/** What a batch of reads touches. */
export function* readTouches(requests: readonly ReadRequest[]): Generator<Touch> {
  for (const { space, at, length } of requests) {
    const size = BigInt(length)
    if (typeof at === 'bigint') yield { space, start: at, end: at + size }
    else for (const address of at) yield { space, start: address, end: address + size }
  }
}
