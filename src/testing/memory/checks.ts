import { invalid } from '../../vmi/local-check.js'
import type { Space } from '../../vmi/memory.js'

export {
  checkInteger,
  checkLimit,
  checkPlan,
  checkRange,
  checkReads,
  checkSpace,
  invalid,
} from '../../vmi/local-check.js'

/** Splits a space into root and levels; levels 0 is physical. */
export function splitSpace(space: Space): { root: number; levels: number } {
  if (typeof space !== 'bigint') throw invalid('space must be a bigint')
  const levels = Number(space & 0xfffn)
  if (space < 0n || space >> 52n !== 0n || (levels !== 4 && levels !== 5 && space !== 0n)) {
    throw invalid(`0x${space.toString(16)} is no space: use PHYSICAL or virtualSpace()`)
  }
  return { root: Number(space & ~0xfffn), levels }
}
