import type { FindingState } from '../finding-event.js'
import type { VmScope } from '../scope.js'
import type { ChangeKind, SeverityId, StatusId } from '../vocabulary.js'

/** One change of one finding, as stored. */
export interface StoredChange {
  readonly sequence: number
  readonly uid: string
  /** uuid of the VM. */
  readonly vm: string
  readonly vmName: string
  readonly change: ChangeKind
  readonly severity: SeverityId
  readonly status: StatusId
  readonly count: number
  /** The OCSF event as JSON text. */
  readonly json: string
}

export interface StoreQuery {
  readonly scope: VmScope
  /** Change sequence after which to begin; findings are given by their newest change. */
  readonly after: number
  readonly minSeverity: number
  readonly statuses: readonly StatusId[]
  readonly limit: number
}

/** A row of the table `finding`. */
export interface Row {
  id: number
  sequence: number
  uid: string
  vm: string
  vm_name: string
  severity: SeverityId
  status: StatusId
  change: ChangeKind
  count: number
  first: number
  last: number
  revision: number
  acknowledged: string | null
  json: string
}

export function stateOf(row: Row): FindingState {
  return {
    uid: row.uid,
    change: row.change,
    status: row.status,
    revision: row.revision,
    count: row.count,
    first: row.first,
    last: row.last,
    time: row.last,
    ...(row.acknowledged !== null && {
      acknowledged: JSON.parse(row.acknowledged) as NonNullable<FindingState['acknowledged']>,
    }),
  }
}

export function changeOf(row: Row): StoredChange {
  const { sequence, uid, vm, change, severity, status, count, json } = row
  return { sequence, uid, vm, vmName: row.vm_name, change, severity, status, count, json }
}
