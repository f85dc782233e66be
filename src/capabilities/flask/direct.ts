import { CloudAppError } from '../../errors.js'
import type { Grant } from '../caveats.js'
import { CAVEAT_NAMES, type CaveatName } from '../dimensions.js'
import { ALL_RIGHTS, type Right } from '../rights.js'

/** Permissions of one class of FLASK (xen/xsm/flask/policy/access_vectors). */
export interface FlaskPermission {
  readonly class: 'domain' | 'hvm' | 'mmu'
  readonly permissions: readonly string[]
}

/**
 * What Xen itself can hold a service domain to, right by right, and no permission more. What is not here only a broker can
 * give: FLASK has no word for it, or only one that says much more (vm_event, sethvmc).
 *
 * - `memory.read`, `memory.write`: XSM_MMU_UPDATE_READ and _WRITE of do_mmu_update. A writable mapping needs both.
 * - `vm.info`: XEN_SYSCTL_getdomaininfolist; XENMEM_maximum_gpfn.
 * - `vcpu.read`: XEN_DOMCTL_gethvmcontext_partial.
 */
export const DIRECT_RIGHTS: Readonly<Partial<Record<Right, readonly FlaskPermission[]>>> = Object.freeze({
  'vm.info': [
    { class: 'domain', permissions: ['getdomaininfo'] },
    { class: 'mmu', permissions: ['stat'] },
  ],
  'vm.pause': [{ class: 'domain', permissions: ['pause', 'unpause'] }],
  'memory.read': [{ class: 'mmu', permissions: ['map_read'] }],
  'memory.write': [{ class: 'mmu', permissions: ['map_write'] }],
  'vcpu.read': [{ class: 'hvm', permissions: ['gethvmc'] }],
})

/**
 * Limits that direct access keeps: it begins and ends at its time (a lease, ended by a supervisor), and it is the broker
 * named as audience whose host it is on.
 */
const KEPT: readonly CaveatName[] = ['notBefore', 'expires', 'audience']

/** The dimensions of a grant that Xen can not hold a service domain to. */
export function beyondFlask(grant: Grant): CaveatName[] {
  return CAVEAT_NAMES.filter((name) => grant[name] !== undefined && !KEPT.includes(name))
}

/**
 * The rights of a grant that become permissions of Xen's, in the order of their codes.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED`: the grant is limited in a way Xen can not hold a domain to
 *   (`details.dimensions`), or has no right that Xen can give (`details.rights`). Such a token stays with the broker.
 */
export function directRights(grant: Grant): Right[] {
  const vm = grant.vm.uuid
  const dimensions = beyondFlask(grant)
  if (dimensions.length > 0) {
    const why = `the token is limited in ${dimensions.join(', ')}, which Xen can not enforce: only the broker can honour it`
    throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', why, { vm, details: { dimensions } })
  }
  const rights = ALL_RIGHTS.filter((right) => grant.rights.includes(right) && DIRECT_RIGHTS[right] !== undefined)
  if (rights.length > 0) return rights
  const can = Object.keys(DIRECT_RIGHTS).join(', ')
  const why = `of ${grant.rights.join(', ') || 'no right'} Xen can give none by itself (it can give ${can})`
  throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', why, { vm, details: { rights: [...grant.rights] } })
}
