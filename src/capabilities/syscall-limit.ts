import { CloudAppError } from '../errors.js'
import type { Grant } from './caveats.js'
import type { Right } from './rights.js'

/**
 * Rights that a limit to some system calls leaves as they are: they show a state, in which a call under way can be seen, and
 * do not tell of calls as they are made. By events, by changed code or registers, or in a copy that is run, a holder
 * comes to know of any call, and nothing holds those to some numbers yet: under such a limit they are refused, and so is
 * a new right until it is put here.
 */
const KEPT: readonly Right[] = ['vm.info', 'vm.pause', 'memory.read', 'vcpu.read']

/** True if the grant is limited to some system calls in a way that `right` can not be held to. */
export function beyondSyscalls({ syscalls }: Pick<Grant, 'syscalls'>, right: Right): boolean {
  return syscalls !== undefined && !KEPT.includes(right)
}

/** Refuses a right that can not be held to the grant's system calls. @throws CloudAppError `ERR_CLOUDAPP_DENIED` */
export function checkSyscalls(grant: Grant, right: Right, vm: string): void {
  if (!beyondSyscalls(grant, right)) return
  const why = `The capability is limited to some system calls of ${vm}, and ${right} can not be held to these`
  throw new CloudAppError('ERR_CLOUDAPP_DENIED', why, { right, vm, details: { held: 'some of the system calls' } })
}
