import type { FlaskDomain } from './compile.js'
import { LATCH, typeOf } from './names.js'

/** Permissions that are taken from a type in Xen's own policy, wherever a rule there gives them unconditionally. */
export interface RuleChange {
  readonly source: string
  readonly target: string
  readonly class: string
  readonly permissions: readonly string[]
}

/**
 * What the control domain may do to a domain, in the macros of Xen's policy (tools/flask/policy/modules/xen.if).
 *
 * A private domain is built under a label of its own (`declare_build_label`), under which the toolstack may write it, and is
 * relabelled before it runs. Once a locked policy is there, no domain can be built under these labels: a second service
 * domain of the same label would have the first one's rights.
 */
export function domainRules(
  { uuid }: FlaskDomain,
  { isPrivate, locked }: { readonly isPrivate: boolean; readonly locked: boolean },
): string {
  const type = typeOf(uuid)
  const own = [`declare_domain(${type})`, `domain_self_comms(${type})`]
  const run = [`manage_domain(dom0_t, ${type})`, `domain_comms(dom0_t, ${type})`]
  if (!isPrivate) {
    return [...own, `create_domain(dom0_t, ${type})`, ...run, `migrate_domain_out(dom0_t, ${type})`].join('\n')
  }
  const building = `${type}_building`
  const build = [
    `create_domain_build_label(dom0_t, ${type})`,
    `manage_domain(dom0_t, ${building})`,
    // The toolstack starts a PVH guest's vCPU from the context it reads.
    `allow dom0_t ${building}:hvm gethvmc;`,
    // xenstored and xenconsoled map their rings, and bind their channels, before the domain is relabelled.
    `allow dom0_t ${building}:grant { map_read map_write copy unmap };`,
    `create_channel(dom0_t, ${building}, dom0_t_channel)`,
    `create_channel(${building}, dom0_t, ${type}_channel)`,
  ]
  return [...own, `declare_build_label(${type})`, ...(locked ? [] : build), ...run, ...closed(type)].join('\n')
}

/** The compiler of the policy refuses to make one in which the control domain can look into the domain. */
function closed(type: string): string[] {
  return [
    `neverallow dom0_t ${type}:mmu { map_read map_write pageinfo physmap adjust target_hack };`,
    `neverallow dom0_t ${type}:hvm { gethvmc sethvmc };`,
    `neverallow dom0_t ${type}:domain { getvcpucontext setvcpucontext setdebugging set_target };`,
    `neverallow dom0_t ${type}:shadow { enable logdirty };`,
  ]
}

/** A service domain and its client talk (findings, over vchan): each maps only what the other grants. */
export const commsRules = (service: string, client: string): string =>
  `domain_comms(${typeOf(service)}, ${typeOf(client)})`

const POLICY = ['load_policy', 'setenforce', 'setsecparam', 'add_ocontext', 'del_ocontext']

/** Ways around the policy that are permissions of their own: new code in the hypervisor, or guests' registers printed. */
const AROUND = ['kexec', 'debug', 'microcode', 'mca_op', 'privprofile']
const AROUND2 = ['livepatch_op', 'pmu_ctrl']

/**
 * The control domain without the right to change the policy. `setbool` is one permission for all booleans, so it stands
 * behind the only boolean there is: turned off, that takes all delegations back, and with them the permission to turn it on.
 */
export const LOCK_RULES = {
  module: [
    `if (${LATCH}) {`,
    '  allow dom0_t security_t:security setbool;',
    '}',
    `neverallow domain_type security_t:security { ${POLICY.join(' ')} };`,
    `neverallow dom0_t xen_t:xen { ${AROUND.join(' ')} };`,
    `neverallow dom0_t xen_t:xen2 { ${AROUND2.join(' ')} };`,
  ].join('\n'),
  changes: [
    { source: 'dom0_t', target: 'security_t', class: 'security', permissions: [...POLICY, 'setbool'] },
    { source: 'dom0_t', target: 'xen_t', class: 'xen', permissions: AROUND },
    { source: 'dom0_t', target: 'xen_t', class: 'xen2', permissions: AROUND2 },
  ] satisfies readonly RuleChange[],
} as const
