import { CloudAppError } from '../../errors.js'
import { LIMITS, type ReadRequest, type Space, type WalkPlan } from '../../vmi/memory.js'

const TOP = 1n << 64n

/** @throws CloudAppError `ERR_CLOUDAPP_LIMIT`, naming the limit, if `value` is past it */
export function checkLimit(limit: keyof typeof LIMITS, value: number): void {
  if (value <= LIMITS[limit]) return
  throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `${limit} is ${value}, at most ${LIMITS[limit]} are allowed`, {
    details: { limit, asked: value, allowed: LIMITS[limit] },
  })
}

export function invalid(message: string, address?: bigint): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', message, address === undefined ? {} : { address })
}

export function checkCount(name: string, value: unknown, least: number): void {
  if (!Number.isSafeInteger(value) || (value as number) < least) {
    throw invalid(`${name} must be an integer of at least ${least}, not ${String(value)}`)
  }
}

export function checkAddress(name: string, value: unknown, top = TOP - 1n): void {
  if (typeof value !== 'bigint' || value < 0n || value > top) {
    throw invalid(`${name} must be a bigint between 0 and 2^64${top === TOP ? '' : ' - 1'}`)
  }
}

/** Splits a space into root and levels; levels 0 is physical. */
export function splitSpace(space: Space): { root: number; levels: number } {
  if (typeof space !== 'bigint') throw invalid('space must be a bigint')
  const levels = Number(space & 0xfffn)
  if (space < 0n || space >> 52n !== 0n || (levels !== 4 && levels !== 5 && space !== 0n)) {
    throw invalid(`0x${space.toString(16)} is no space: use PHYSICAL or virtualSpace()`)
  }
  return { root: Number(space & ~0xfffn), levels }
}

/** Checks a range `[start, end)`; end may be 2^64. */
export function checkRange(start: bigint, end: bigint): void {
  checkAddress('start', start)
  checkAddress('end', end, TOP)
  if (end < start) throw invalid('end lies before start', end)
}

/** Checks a batch of reads before any work is done. */
export function checkReads(requests: readonly ReadRequest[]): void {
  checkLimit('batch', requests.length)
  let total = 0
  for (const { at, length, space } of requests) {
    splitSpace(space)
    checkCount('length', length, 0)
    checkLimit('readLength', length)
    if (typeof at === 'bigint') checkAddress('at', at)
    else if (!(at instanceof BigUint64Array)) throw invalid('at must be a bigint or a BigUint64Array')
    const count = typeof at === 'bigint' ? 1 : at.length
    checkLimit('addresses', count)
    total += count * length
  }
  checkLimit('resultBytes', total)
}

/** Checks a batch of walk plans before any work is done. Bytes of results are counted while walking. */
export function checkPlans(plans: readonly WalkPlan[]): void {
  checkLimit('batch', plans.length)
  for (const plan of plans) {
    splitSpace(plan.space)
    checkAddress('head', plan.head)
    checkCount('limit', plan.limit, 0)
    checkLimit('walkRows', plan.limit)
    checkLimit('columns', plan.columns.length)
    for (const column of plan.columns) {
      checkCount('column size', column.size, 1)
      checkLimit('columnSize', column.size)
      checkLimit('pathLength', column.path.length)
      if (column.path.length === 0) throw invalid('a column needs at least one offset')
      for (const offset of column.path) {
        if (!Number.isSafeInteger(offset)) throw invalid(`column offset ${offset} is not an integer`)
      }
    }
    checkShape(plan)
  }
}

function checkShape(plan: WalkPlan): void {
  switch (plan.kind) {
    case 'xarray':
      checkCount('shiftOffset', plan.shiftOffset, 0)
      checkCount('slotsOffset', plan.slotsOffset, 0)
      checkCount('slots', plan.slots, 1)
      if (plan.slots > 64 || (plan.slots & (plan.slots - 1)) !== 0)
        throw invalid('slots must be a power of two up to 64')
      return
    case 'array':
      checkCount('count', plan.count, 0)
      checkCount('stride', plan.stride, 1)
      return
    case 'hash':
      checkCount('count', plan.count, 0)
      break
    case 'list':
    case 'hlist':
    case 'rbtree':
      break
    default:
      throw invalid(`no such walk: ${String((plan as { kind: unknown }).kind)}`)
  }
  if (!Number.isSafeInteger(plan.node)) throw invalid('node must be an integer offset')
}
