import { CloudAppError } from '../errors.js'
import { LIMITS, type ReadRequest, type WalkPlan } from './memory.js'

const U64_END = 1n << 64n

export function invalid(message: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', message)
}

/** Throws ERR_CLOUDAPP_LIMIT if `value` is above the named bound of {@link LIMITS}. */
export function checkLimit(name: keyof typeof LIMITS, value: number): void {
  if (value <= LIMITS[name]) return
  throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `${value} is above the limit of ${LIMITS[name]} (${name})`, {
    details: { limit: name, asked: value, most: LIMITS[name] },
  })
}

/** Throws unless `value` is an integer of at least `least`. */
export function checkInteger(what: string, value: number, least = 0): void {
  if (!Number.isSafeInteger(value) || value < least) {
    throw invalid(`${what} must be an integer of at least ${least}, not ${String(value)}`)
  }
}

/** Throws unless `value` is a u64; with `orEnd`, 2^64 is allowed too. */
export function checkAddress(what: string, value: bigint, orEnd = false): void {
  // Comparing bigints is a call each; this is none in compiled code.
  if (typeof value !== 'bigint' || (BigInt.asUintN(64, value) !== value && !(orEnd && value === U64_END))) {
    throw invalid(`${what} must be a bigint of 64 bits`)
  }
}

/** Throws unless `[start, end)` is a range of at least one byte; gives its last address. */
export function checkRange(start: bigint, end: bigint): bigint {
  checkAddress('start', start)
  checkAddress('end', end, true)
  if (end <= start) throw invalid('end must be above start')
  return end - 1n
}

export function checkSpace(space: bigint): void {
  checkAddress('space', space)
}

/** Checks a batch of reads; gives the number of its addresses and result bytes. */
export function checkReads(requests: readonly ReadRequest[]): { addresses: number; bytes: number } {
  checkLimit('batch', requests.length)
  let addresses = 0
  let bytes = 0
  for (let i = 0; i < requests.length; i++) {
    const { space, at, length } = requests[i] as ReadRequest
    checkSpace(space)
    checkInteger('length', length, 1)
    // Looking a limit up by its name, for each of a batch, would be a tenth of what reading them takes.
    if (length > LIMITS.readLength) checkLimit('readLength', length)
    let count = 1
    if (typeof at === 'bigint') checkAddress('at', at)
    else if (at instanceof BigUint64Array) count = at.length
    else throw invalid('at must be a bigint or a BigUint64Array')
    if (count > LIMITS.addresses) checkLimit('addresses', count)
    addresses += count
    bytes += count * length
  }
  checkLimit('resultBytes', bytes)
  return { addresses, bytes }
}

/** Checks a plan; gives the bytes of one row. */
export function checkPlan(plan: WalkPlan): number {
  checkSpace(plan.space)
  checkAddress('head', plan.head)
  checkInteger('limit', plan.limit, 1)
  checkLimit('walkRows', plan.limit)
  checkLimit('columns', plan.columns.length)
  let row = 8 + plan.columns.length
  for (const { path, size } of plan.columns) {
    checkInteger('the size of a column', size, 1)
    if (size > LIMITS.columnSize) checkLimit('columnSize', size)
    if (path.length === 0) throw invalid('the path of a column must have at least one offset')
    if (path.length > LIMITS.pathLength) checkLimit('pathLength', path.length)
    if (!path.every(Number.isSafeInteger)) throw invalid('the offsets of a column must be integers')
    row += size
  }
  switch (plan.kind) {
    case 'xarray':
      checkInteger('shiftOffset', plan.shiftOffset)
      checkInteger('slotsOffset', plan.slotsOffset)
      if (![16, 32, 64].includes(plan.slots)) throw invalid('slots must be 16, 32 or 64')
      break
    case 'array':
      checkInteger('count', plan.count)
      checkInteger('stride', plan.stride, 1)
      checkLimit('walkSlots', plan.count)
      break
    case 'hash':
      checkInteger('count', plan.count)
      checkLimit('walkSlots', plan.count)
      checkNode(plan.node)
      break
    case 'list':
    case 'hlist':
    case 'rbtree':
      checkNode(plan.node)
      break
    default:
      throw invalid(`walk kind '${String((plan as { kind: unknown }).kind)}' is not known`)
  }
  return row
}

function checkNode(node: number): void {
  if (!Number.isSafeInteger(node)) throw invalid('node must be an integer')
}
