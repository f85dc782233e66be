import type { WalkResult } from '../../memory.js'
import type { Candidate } from './hit.js'

/** A structure of the guest that could not be read to its end. */
interface Broken {
  readonly check: string
  readonly what: string
  readonly at: bigint
  readonly why: string
  readonly churns: boolean
}

/** Names what a walk reads, for when it does not end well. */
export interface Book {
  readonly what: string
  /** True for one of many that come and go on a busy guest: broken at one look says nothing. */
  readonly churns?: boolean
}

/** Of the structures that come and go, so many are kept. */
const MAX_CHURNING = 64
const LOOKS = 4

/**
 * What could not be read in one look. Who breaks one of the kernel's lists keeps the check that reads it from finding
 * anything: that must be seen, as a hit of its own and in the report's checks.
 */
export class BrokenBooks {
  /** The check that reads now. */
  check = 'modules'
  #found = new Map<string, Broken>()

  note({ what, churns = false }: Book, at: bigint, why: string): void {
    if (churns && this.#found.size >= MAX_CHURNING) return
    const key = `${what}:${at.toString(16)}`
    if (!this.#found.has(key)) this.#found.set(key, { check: this.check, what, at, why, churns })
  }

  /** Notes a walk that did not end well. */
  noteEnd(book: Book, at: bigint, { end, fault, rows }: Pick<WalkResult, 'end' | 'fault' | 'rows'>): void {
    if (end === 'complete') return
    const why = {
      limit: `has more than ${rows} elements`,
      cycle: `returns into itself after ${rows} elements`,
      fault: `can not be followed after ${rows} elements (${fault?.reason ?? 'unknown'})`,
    }[end]
    this.note(book, at, why)
  }

  /** What was noted since the last call. */
  take(): readonly Broken[] {
    const found = [...this.#found.values()]
    this.#found = new Map()
    return found
  }
}

/** One sentence on it. */
export function describeBroken({ what, why }: Pick<Broken, 'what' | 'why'>): string {
  return `${what} ${why}`
}

export function brokenCandidate(broken: Broken): Candidate {
  const { check, what, at, why } = broken
  return {
    hit: {
      id: `broken-list:${what}:${at.toString(16)}`,
      kind: 'broken-list',
      title: `A structure of the kernel can not be read to its end: ${describeBroken(broken)}`,
      severity: 'medium',
      evidence: { data: { check, what, at, why } },
    },
    identity: `broken:${what}:${at}`,
    looks: LOOKS,
  }
}
