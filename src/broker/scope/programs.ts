import type { Grant } from '../../capabilities/caveats.js'
import { eventRights } from '../../capabilities/event-rights.js'
import { deniedError, type Right } from '../../capabilities/rights.js'
import { CloudAppError } from '../../errors.js'
import type { CompiledProgram } from '../../vmi/events/compile.js'
import type { GuestVm } from '../../vmi/guest.js'
import type { ScopedAccess } from './access.js'
import { isScoped, outOfScope, reaches } from './touches.js'

/**
 * Refuses a program that the grant does not allow, and every one of which that can not be told beforehand: where a capture
 * or predicate reads is known only at the event, and whose process it is then, too.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_DENIED`
 */
export function checkProgram(grant: Grant, program: CompiledProgram, vm: string): void {
  const { trap, uses } = program
  for (const right of eventRights(program)) {
    if (!grant.rights.includes(right)) throw deniedError(right, grant.rights, vm)
  }
  if (!isScoped(grant)) return
  if (grant.processes !== undefined) {
    throw refused(
      trap.kind === 'breakpoint' ? 'events.memory' : 'events.register',
      'events come from all processes',
      vm,
    )
  }
  if (uses.memory) throw refused('memory.read', 'where an event reads memory is not known before', vm)
  if (trap.kind === 'breakpoint' && !reaches(grant.memory?.kernel ?? [], trap.at, trap.at + 1n)) {
    throw outOfScope('events.memory', trap.at, trap.space)
  }
}

/** What needs the guest to be checked: that a breakpoint's address space is the one the grant speaks of. */
export async function checkBreakpoint(
  grant: Grant,
  { trap }: CompiledProgram,
  vm: GuestVm,
  scope: ScopedAccess,
): Promise<void> {
  if (trap.kind !== 'breakpoint' || !isScoped(grant)) return
  const { memory } = vm
  if (memory === undefined) throw outOfScope('events.memory', trap.at, trap.space)
  // A read as far as the grant reaches fails where the breakpoint would be out of its reach.
  await scope.perform(vm, memory, [trap.space], 'events.memory', (scoped) =>
    scoped.read([{ space: trap.space, at: trap.at, length: 1 }]),
  )
}

function refused(right: Right, why: string, vm: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_DENIED', `The capability is limited to some of ${vm}, and ${why}`, {
    right,
    vm,
    details: { held: 'some of the VM' },
  })
}
