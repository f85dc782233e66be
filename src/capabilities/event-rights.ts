import { type CompiledProgram, compileProgram } from '../vmi/events/compile.js'
import type { BreakpointTrap, EventProgram, RegisterTrap, Trap } from '../vmi/events/program.js'
import type { Right } from './rights.js'

/** The traps that these rights allow. */
export type TrapOf<R extends Right> =
  | (Extract<R, 'events.register'> extends never ? never : RegisterTrap)
  | (Extract<R, 'events.memory'> extends never ? never : BreakpointTrap)

/** The right that each trap needs. A breakpoint tells that chosen memory was executed, and changes it to do so. */
const TRAP_RIGHTS: { readonly [K in Trap['kind']]: Right } = {
  register: 'events.register',
  cpuid: 'events.register',
  msr: 'events.register',
  descriptor: 'events.register',
  'guest-request': 'events.register',
  breakpoint: 'events.memory',
}

/**
 * The rights a program needs: its trap's, and one for each thing it looks at when the trap springs. Every event tells cr3,
 * rip and the trap's own fields; other registers, in captures and predicates, are `vcpu.read`; memory is `memory.read`.
 * (A predicate tells what it looks at by the events that do not come.)
 */
export function eventRights({ trap, uses }: CompiledProgram): Right[] {
  const rights: Right[] = [TRAP_RIGHTS[trap.kind]]
  if (uses.memory) rights.push('memory.read')
  if (uses.registers.length > 0) rights.push('vcpu.read')
  return rights
}

/**
 * The first right that a program needs and that is not held; undefined if all are.
 *
 * @throws CloudAppError as compileProgram does, for a program that is not well-formed
 */
export function missingEventRight(program: EventProgram, held: readonly Right[]): Right | undefined {
  return eventRights(compileProgram(program)).find((right) => !held.includes(right))
}
