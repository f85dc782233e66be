import type { AuditRecord } from '../broker/audit/types.js'
import type { PublicKey } from '../capabilities/keys.js'
import type { AuditedOperation } from '../service/ocsf/api-activity.js'

/** What the acts of a broker do, by the first part of their name that is here; others are `other`. */
const ACTIVITY: Readonly<Record<string, AuditedOperation['activity']>> = {
  'token.redeem': 'create',
  'owner.open': 'create',
  'capability.end': 'delete',
  'capability.revoke': 'delete',
  'session.close': 'delete',
  'memory.write': 'update',
  'vm.pause': 'update',
  'vm.unpause': 'update',
  'vcpu.write': 'update',
  memory: 'read',
  vcpu: 'read',
  vm: 'read',
}

/** A record of a broker's audit log as what becomes an OCSF API Activity event. */
export function auditedOperation(record: AuditRecord, broker: PublicKey | undefined): AuditedOperation {
  const { entry, seq, hash } = record
  const { action, outcome, vm, right, block, holder, session, peer, code, details = {} } = entry
  const count = details.operations
  const error = { code: code ?? 'ERR_CLOUDAPP_DENIED', message: `the broker ${outcome} it` }
  return {
    time: Date.parse(record.time),
    operation: action,
    activity: activityOf(action),
    uid: hash,
    // What the broker does of itself has no holder.
    actor: { uid: holder ?? broker ?? 'broker', channel: peer ?? session ?? 'broker' },
    ...(vm === undefined ? {} : { vm: { name: vm } }),
    ...(outcome === 'allowed' ? {} : { error }),
    ...(typeof count === 'number' && count > 0 ? { count } : {}),
    product: { name: 'cloudapp broker', vendor_name: 'cloudapp', ...(broker === undefined ? {} : { uid: broker }) },
    data: {
      seq,
      ...defined({ right, block, session, peer }),
      // Of an act that was allowed it tells why something ended.
      ...(outcome === 'allowed' ? defined({ code }) : {}),
      ...(Object.keys(details).length === 0 ? {} : { details: plain(details) }),
    },
  }
}

function activityOf(action: string): AuditedOperation['activity'] {
  for (let name = action; name !== ''; name = name.slice(0, Math.max(0, name.lastIndexOf('.')))) {
    const found = Object.hasOwn(ACTIVITY, name) ? ACTIVITY[name] : undefined
    if (found !== undefined) return found
  }
  return 'other'
}

function defined(fields: Record<string, string | undefined>): Record<string, string> {
  return Object.fromEntries(Object.entries(fields).filter((field): field is [string, string] => field[1] !== undefined))
}

function plain(details: NonNullable<AuditRecord['entry']['details']>): Record<string, string | number | boolean> {
  return Object.fromEntries(
    Object.entries(details).map(([name, value]) => [
      name,
      typeof value === 'bigint' ? `0x${value.toString(16)}` : value,
    ]),
  )
}
