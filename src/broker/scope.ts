import type { Grant } from '../capabilities/caveats.js'
import { rangesCover } from '../capabilities/ranges.js'
import type { Right } from '../capabilities/rights.js'
import { CloudAppError } from '../errors.js'
import { PHYSICAL, type ReadRequest, type Space } from '../vmi/memory.js'

/** One stretch of memory an operation touches; `end` is exclusive. */
export interface Touch {
  readonly space: Space
  readonly start: bigint
  readonly end: bigint
}

/**
 * Refuses memory that the grant does not reach. Physical ranges are compared as they stand. A virtual address can be
 * compared only with its page table known to be the kernel's or a process's, which this broker does not establish: a
 * token that narrows memory reaches physical ranges here and nothing else.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_DENIED`
 */
export function checkScope(grant: Grant, right: Right, touches: Iterable<Touch>): void {
  if (grant.memory === undefined && grant.processes === undefined) return
  const physical = grant.memory?.physical ?? []
  for (const { space, start, end } of touches) {
    if (space === PHYSICAL && start < end && rangesCover(physical, start, end - 1n)) continue
    throw new CloudAppError('ERR_CLOUDAPP_DENIED', 'The capability does not reach this memory', {
      right,
      address: BigInt.asUintN(64, start),
      details: { space: space === PHYSICAL ? 'physical' : 'virtual', held: 'some physical ranges' },
    })
  }
}

/** Refuses verbs that follow pointers, of which no broker can say beforehand where they lead. */
export function checkUnscoped(grant: Grant, right: Right): void {
  if (grant.memory === undefined && grant.processes === undefined) return
  throw new CloudAppError('ERR_CLOUDAPP_DENIED', 'The capability is limited to some memory and allows no walk', {
    right,
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
