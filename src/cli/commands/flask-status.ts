import { DirectClient } from '../../broker/direct/index.js'
import { beyondFlask, booleanOf, DIRECT_RIGHTS, LATCH } from '../../capabilities/flask/index.js'
import type { Right } from '../../capabilities/rights.js'
import { CloudAppError } from '../../errors.js'
import { XlFlask } from '../../host/flask.js'
import type { Command } from '../command.js'
import { DEFAULT_SUPERVISOR, planOptions, supervisorOption } from '../flask-options.js'
import { type PlannedDelegation, readPlan } from '../flask-plan.js'

interface Row {
  readonly service: string
  readonly client: string
  readonly right: Right
  /** `hypervisor`: Xen says no without the switch. `broker`: only the broker can say yes. */
  readonly by: 'hypervisor' | 'broker'
  /** The switch in Xen, where there is one. */
  readonly on?: boolean
  readonly why: string
}

export const command: Command = {
  summary: 'Show, right by right, what Xen enforces and what only the broker does',
  options: { plan: planOptions.plan as NonNullable<(typeof planOptions)['plan']>, ...supervisorOption },
  json: true,
  async run({ args, out }) {
    const { delegations } = await readPlan(args.need('plan'))
    const flask = new XlFlask()
    const mode = await flask.mode()
    const switches = mode === 'absent' ? new Map<string, boolean>() : await flask.booleans()
    const rows = delegations.flatMap((delegation) =>
      delegation.grant.rights.map((right) => rowOf(delegation, right, mode, switches)),
    )
    const leases = await new DirectClient(args.text('supervisor') ?? DEFAULT_SUPERVISOR)
      .list()
      .catch((error: unknown) => {
        if (CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) return undefined
        throw error
      })
    const locked = switches.has(LATCH)
    if (out.isJson) {
      out.json({ mode, locked, supervisor: leases !== undefined, leases: leases ?? [], rights: rows })
      return 0
    }
    out.note(`FLASK: ${mode}${locked ? `, locked (${switches.get(LATCH) ? 'live' : 'all taken back'})` : ''}`)
    out.note(leases === undefined ? 'no supervisor runs: direct access can not be begun' : `${leases.length} leases`)
    out.table(
      [
        { title: 'SERVICE' },
        { title: 'VM' },
        { title: 'RIGHT' },
        { title: 'ENFORCED BY' },
        { title: 'XEN' },
        { title: 'WHY' },
      ],
      rows.map((row) => [
        row.service,
        row.client,
        row.right,
        row.by,
        row.on === undefined ? '-' : row.on ? 'on' : 'off',
        row.why,
      ]),
    )
    return 0
  },
}

function rowOf(
  { service, serviceName, grant, vm }: PlannedDelegation,
  right: Right,
  mode: string,
  switches: ReadonlyMap<string, boolean>,
): Row {
  const row = { service: serviceName, client: vm.name, right }
  const limits = beyondFlask(grant)
  if (mode !== 'enforcing') return { ...row, by: 'broker', why: `FLASK is ${mode}` }
  if (DIRECT_RIGHTS[right] === undefined)
    return { ...row, by: 'broker', why: 'Xen has no permission for this right alone' }
  if (limits.length > 0) return { ...row, by: 'broker', why: `limited in ${limits.join(', ')}` }
  const on = switches.get(LATCH) ?? switches.get(booleanOf(service, grant.vm.uuid, right))
  if (on === undefined) return { ...row, by: 'broker', why: 'not in the policy that is loaded' }
  const permissions = DIRECT_RIGHTS[right].map((allow) => `${allow.class} { ${allow.permissions.join(' ')} }`)
  return { ...row, by: 'hypervisor', on, why: permissions.join(', ') }
}
