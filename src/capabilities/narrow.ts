import { dimension } from './block.js'
import type { Grant, Narrowing } from './caveats.js'
import { CAVEAT_NAMES, type CaveatName } from './dimensions.js'
import type { Right } from './rights.js'
import { type MemoryScope, meetMemory, PROCESS_MEMORY } from './scope.js'

/** Where a block asks for more than it may. */
export interface Widening {
  readonly dimension: 'rights' | CaveatName
  readonly rights?: readonly Right[]
}

/** The first dimension in which `narrowing` asks for more than `grant` has, or undefined if it asks for none. */
export function findWidening(grant: Grant, narrowing: Narrowing): Widening | undefined {
  const extra = narrowing.rights?.filter((right) => !grant.rights.includes(right)) ?? []
  if (extra.length > 0) return { dimension: 'rights', rights: extra }
  for (const name of CAVEAT_NAMES) {
    const inner = narrowing[name]
    const outer = grant[name]
    // Where nothing is said yet, anything narrows.
    if (inner === undefined || outer === undefined) continue
    if (!dimension(name).within(inner, outer)) return { dimension: name }
  }
  return undefined
}

/**
 * What holds after a block: the intersection, in each dimension. Called only after {@link findWidening} found none; the
 * intersection is taken all the same, so that a fault in one of the two does not widen.
 */
export function narrowGrant(grant: Grant, narrowing: Narrowing): Grant {
  const out: Record<string, unknown> = { ...grant }
  for (const name of CAVEAT_NAMES) {
    const inner = narrowing[name]
    if (inner === undefined) continue
    const outer = grant[name]
    out[name] = outer === undefined ? inner : dimension(name).meet(outer, inner)
  }
  const asked = narrowing.rights
  if (asked !== undefined) out.rights = grant.rights.filter((right) => asked.includes(right))
  if (narrowing.processes !== undefined && narrowing.memory === undefined) {
    out.memory = withinProcesses(grant.memory)
  }
  return out as unknown as Grant
}

/** What memory is left once only processes may be looked at. */
export function withinProcesses(memory: MemoryScope | undefined): MemoryScope {
  return memory === undefined ? PROCESS_MEMORY : meetMemory(memory, PROCESS_MEMORY)
}
