import { randomBytes } from 'node:crypto'
import { DirectClient, type DirectLease, type DomainRef } from '../../broker/direct/index.js'
import {
  booleanOf,
  compileFlask,
  directRights,
  type FlaskPolicy,
  LATCH,
  labelsLost,
} from '../../capabilities/flask/index.js'
import type { Right } from '../../capabilities/rights.js'
import { isoTime } from '../../capabilities/time.js'
import { CloudAppError } from '../../errors.js'
import { XlFlask } from '../../host/flask.js'
import { type HostDomain, XlHost } from '../../host/host.js'
import { buildPolicy } from '../../host/policy.js'
import type { Command } from '../command.js'
import { DEFAULT_SUPERVISOR, planOptions, sourceOption, supervisorOption } from '../flask-options.js'
import { type FlaskPlan, type PlannedDelegation, readPlan } from '../flask-plan.js'

/** What a service domain is given: the argument of `openXenDirect`. */
interface OpenDirect {
  readonly domid: number
  readonly identity: { readonly name: string; readonly uuid: string; readonly bootNonce: string }
  readonly expires: number
  readonly write: boolean
  readonly registers: boolean
  readonly pause: boolean
}

export const command: Command = {
  summary: 'Load the policy of a plan into Xen, and begin its leases',
  help: [
    'Run as root in the control domain of a Xen with XSM, with `cloudapp flask supervise` running. Compiles the plan with',
    "Xen's own policy, loads it, and has the supervisor turn on what the tokens give between domains that run under their",
    'labels. Domains that do not run yet are named with the label to create them under; run it again then.',
    '',
    'Prints for each lease what the service domain opens the VM with (`openXenDirect`). Nothing in it is secret.',
  ].join('\n'),
  options: { ...planOptions, ...sourceOption, ...supervisorOption },
  json: true,
  async run({ args, out }) {
    const plan = await readPlan(args.need('plan'))
    const locked = args.flag('locked')
    const policy = compileFlask({
      domains: plan.domains,
      delegations: plan.delegations.map(({ service, grant }) => ({ service, grant })),
      private: args.flag('private'),
      locked,
    })
    const flask = new XlFlask()
    const mode = await flask.mode()
    if (mode !== 'enforcing') {
      throw new CloudAppError(
        'ERR_CLOUDAPP_UNSUPPORTED',
        `FLASK is ${mode} here: \`cloudapp doctor\` says what it takes`,
      )
    }
    const supervisor = new DirectClient(args.text('supervisor') ?? DEFAULT_SUPERVISOR)
    // Before anything is changed: without it no lease would end.
    const live = await supervisor.list()
    const running = await runningOf(policy, locked)
    const source = args.text('xen-source')
    await flask.load(await buildPolicy({ ...policy, ...(source === undefined ? {} : { xenSource: source }) }))
    const started: { service: string; rights: readonly Right[]; open: OpenDirect }[] = []
    for (const delegation of plan.delegations) {
      const lease = leaseOf(delegation, running, locked)
      if (lease === undefined) continue
      if (!live.some((other) => sameLease(other, lease))) await begin(supervisor, plan, delegation, lease)
      started.push({ service: lease.service.name, rights: lease.rights, open: openOf(delegation, lease) })
    }
    const waiting = policy.labels.filter(({ uuid }) => !running.has(uuid))
    if (out.isJson) {
      out.json({ loaded: true, locked, leases: started, waiting })
      return 0
    }
    for (const { name, seclabel, initSeclabel } of waiting) {
      const built = initSeclabel === undefined ? '' : ` and init_seclabel = "${initSeclabel}"`
      out.note(`${name} does not run under its label: create it with seclabel = "${seclabel}"${built}`)
    }
    for (const { service, rights, open } of started) {
      out.note(`${service}: ${rights.join(', ')} over ${open.identity.name} until ${isoTime(open.expires)}`)
      out.line(JSON.stringify(open))
    }
    return 0
  },
}

/** The plan's domains that run under their own label, by uuid. */
async function runningOf(policy: FlaskPolicy, locked: boolean): Promise<Map<string, HostDomain>> {
  const there = await new XlHost().list()
  const running = new Map<string, HostDomain>()
  for (const { uuid, seclabel } of policy.labels) {
    const found = there.find((domain) => domain.uuid === uuid && domain.label === seclabel)
    if (found !== undefined) running.set(uuid, found)
  }
  // Under a policy without its label Xen calls a domain unlabeled, and refuses all that is asked of it, dom0's tools included:
  // even xenconsoled, which asks for one domain after the other, would see none behind it.
  const lost = labelsLost(
    policy,
    there.flatMap(({ label }) => label ?? []),
  )
  if (lost.length > 0) {
    const names = there.filter(({ label }) => label !== undefined && lost.includes(label)).map(({ name }) => name)
    const why = `${names.join(', ')} would lose the label it runs under: add it to the plan's domains, or end it first`
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', why, { details: { domains: names } })
  }
  const absent = policy.labels.filter(({ uuid }) => !running.has(uuid)).map(({ name }) => name)
  if (locked && absent.length > 0) {
    const why = `${absent.join(', ')} must run under their labels first: under a locked policy they can not be created any more`
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', why, { details: { absent } })
  }
  return running
}

function leaseOf(
  { service, serviceName, grant, token, vm, end }: PlannedDelegation,
  running: ReadonlyMap<string, HostDomain>,
  locked: boolean,
): DirectLease | undefined {
  const holder = running.get(service)
  const client = running.get(grant.vm.uuid)
  if (holder === undefined || client === undefined) return undefined
  const rights = directRights(grant)
  const ref = ({ domid, uuid }: HostDomain, name: string): DomainRef => ({ domid, uuid, name })
  return {
    id: randomBytes(16).toString('hex'),
    service: ref(holder, serviceName),
    client: ref(client, vm.name),
    rights,
    booleans: locked ? [LATCH] : rights.map((right) => booleanOf(service, grant.vm.uuid, right)),
    issuer: token.issuer,
    blocks: token.ids,
    expires: grant.expires,
    end,
  }
}

const sameLease = (a: DirectLease, b: DirectLease): boolean =>
  a.service.domid === b.service.domid &&
  a.client.domid === b.client.domid &&
  a.booleans.join() === b.booleans.join() &&
  a.blocks.join() === b.blocks.join()

async function begin(
  supervisor: DirectClient,
  plan: FlaskPlan,
  { token, vm }: PlannedDelegation,
  lease: DirectLease,
): Promise<void> {
  await supervisor.start(lease)
  // Revoked while we were at it: the broker told the supervisor before there was a lease to end.
  for (const id of token.ids) {
    if (!(await plan.revoked(token.issuer, id))) continue
    await supervisor.end(token.issuer, id, false)
    throw new CloudAppError('ERR_CLOUDAPP_REVOKED', 'the capability was revoked', {
      vm: vm.name,
      details: { block: id },
    })
  }
}

function openOf({ vm }: PlannedDelegation, { client, rights, expires }: DirectLease): OpenDirect {
  const { name, uuid, bootNonce } = vm
  const has = (right: Right): boolean => rights.includes(right)
  return {
    domid: client.domid,
    identity: { name, uuid, bootNonce },
    expires,
    write: has('memory.read') && has('memory.write'),
    registers: has('vcpu.read'),
    pause: has('vm.pause'),
  }
}
