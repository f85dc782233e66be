import type { CloudAppError } from '../errors.js'
import type { VmIdentity } from '../vmi/guest.js'
import type { DelegationPorts } from './delegation.js'

/**
 * An object of which every method throws `reason`: what a handle's port becomes when the handle ends, so that no later
 * use can reach what was behind it.
 */
export function revokedPort<T extends object>(reason: CloudAppError): T {
  const fail = () => {
    throw reason
  }
  return new Proxy({} as T, {
    // `then` must stay absent, or awaiting the port would call it.
    get: (_, name) => (name === 'then' || typeof name === 'symbol' ? undefined : fail),
    has: () => false,
    set: fail,
  })
}

/** The ports of a delegation that has ended. */
export function revokedPorts(identity: VmIdentity, reason: CloudAppError): DelegationPorts {
  const sync = revokedPort<NonNullable<NonNullable<DelegationPorts['memory']>['sync']>>(reason)
  const fail = () => Promise.reject(reason)
  const memory = { read: fail, walk: fail, pages: fail, search: fail, digest: fail, write: fail, end: 0n, sync }
  return {
    identity,
    memory,
    vcpus: revokedPort(reason),
    events: { subscribe: fail, support: fail },
    kernel: fail,
    pause: fail,
    info: fail,
    processes: fail,
    budget: fail,
    attenuate: fail,
    delegate: fail,
    denied: fail,
  }
}
