import { CloudAppError } from '../errors.js'

/** Severities, lowest first; the position is OCSF's `severity_id` less one. */
export const SEVERITIES = ['informational', 'low', 'medium', 'high', 'critical', 'fatal'] as const
export type Severity = (typeof SEVERITIES)[number]

/** `open` is OCSF's New, `acknowledged` In Progress, `closed` Resolved. */
export const STATUSES = { open: 1, acknowledged: 2, closed: 4 } as const
export type FindingStatus = keyof typeof STATUSES
export type StatusId = (typeof STATUSES)[FindingStatus]

export const CONFIDENCES = { low: 1, medium: 2, high: 3 } as const
export type Confidence = keyof typeof CONFIDENCES

/** What happened to a finding. `acknowledge` is an Update in OCSF. */
export type ChangeKind = 'create' | 'update' | 'acknowledge' | 'close'

export type SeverityId = 1 | 2 | 3 | 4 | 5 | 6

/** OCSF's `severity_id`. Throws ERR_CLOUDAPP_INVALID_ARGUMENT for another word. */
export function severityId(value: Severity): SeverityId {
  const index = SEVERITIES.indexOf(value)
  if (index < 0) throw bad('severity', value, SEVERITIES)
  return (index + 1) as SeverityId
}

export function severityOf(id: number): Severity {
  return SEVERITIES[id - 1] ?? 'informational'
}

/** OCSF's `status_id`. Throws ERR_CLOUDAPP_INVALID_ARGUMENT for another word. */
export function statusId(value: FindingStatus): StatusId {
  if (!Object.hasOwn(STATUSES, value)) throw bad('status', value, Object.keys(STATUSES))
  return STATUSES[value]
}

export function statusOf(id: number): FindingStatus {
  return id === STATUSES.closed ? 'closed' : id === STATUSES.acknowledged ? 'acknowledged' : 'open'
}

export function bad(what: string, value: unknown, known: readonly string[]): CloudAppError {
  const shown = typeof value === 'string' ? JSON.stringify(value.slice(0, 40)) : typeof value
  return new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${what} must be one of ${known.join(', ')}; got ${shown}`)
}
