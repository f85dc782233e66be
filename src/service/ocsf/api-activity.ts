import { CLASSES, OCSF_VERSION } from './facts.js'
import type { ApiActivity, Json, OcsfProduct } from './types.js'
import { assertOcsf, caption } from './validate.js'

/** A privileged operation as an audit log knows it, before it becomes an OCSF event. */
export interface AuditedOperation {
  /** Milliseconds since 1970 (UTC). */
  readonly time: number
  /** E.g. `memory.read`, `delegate`, `revoke`. */
  readonly operation: string
  /** What the operation did to its object; `other` where none of the four fits. */
  readonly activity: 'create' | 'read' | 'update' | 'delete' | 'other'
  /** The audit record's own id. */
  readonly uid: string
  /** Who did it: a public key's fingerprint or a user, and over which channel they came. */
  readonly actor: { readonly uid: string; readonly name?: string; readonly channel: string }
  /** The VM it was done to. */
  readonly vm?: { readonly uuid?: string; readonly name?: string }
  /** Absent on success; `code` is the CloudAppError code. */
  readonly error?: { readonly code: string; readonly message: string }
  /** Repeats coalesced into this record. */
  readonly count?: number
  readonly product: OcsfProduct
  /** What was asked: sizes, rights, block ids. */
  readonly data?: { readonly [name: string]: Json }
}

const ACTIVITY = { create: 1, read: 2, update: 3, delete: 4, other: 99 } as const

/**
 * One audit record as an OCSF 1.8.0 API Activity event. A refused operation has severity Medium, the others Informational.
 * Throws ERR_CLOUDAPP_INVALID_ARGUMENT if the record does not make a valid event.
 */
export function apiActivity(record: AuditedOperation): ApiActivity {
  const cls = CLASSES.api_activity
  const activity = ACTIVITY[record.activity]
  const activityName = caption('api_activity', 'activity_id', activity)
  const severity = record.error ? 3 : 1
  const status = record.error ? 2 : 1
  const event: ApiActivity = {
    activity_id: activity,
    activity_name: activityName,
    category_uid: cls.category_uid,
    category_name: cls.category_name,
    class_uid: cls.class_uid,
    class_name: cls.class_name,
    type_uid: cls.class_uid * 100 + activity,
    type_name: `${cls.class_name}: ${activityName}`,
    severity_id: severity,
    severity: caption('api_activity', 'severity_id', severity),
    status_id: status,
    status: caption('api_activity', 'status_id', status),
    ...(record.error && { status_code: record.error.code, status_detail: record.error.message }),
    ...(record.count !== undefined && { count: record.count }),
    time: record.time,
    message: record.error ? `${record.operation} refused: ${record.error.code}` : record.operation,
    metadata: { version: OCSF_VERSION, product: record.product, uid: record.uid, log_name: 'audit' },
    actor: {
      user: { uid: record.actor.uid, ...(record.actor.name !== undefined && { name: record.actor.name }) },
    },
    api: {
      operation: record.operation,
      request: { uid: record.uid, ...(record.data && { data: record.data }) },
      ...(record.error && { response: { error: record.error.code, message: record.error.message } }),
      service: { name: record.product.name },
    },
    src_endpoint: { uid: record.actor.uid, svc_name: record.actor.channel },
    ...(record.vm && {
      resources: [
        {
          ...(record.vm.uuid !== undefined && { uid: record.vm.uuid }),
          ...(record.vm.name !== undefined && { name: record.vm.name }),
          type: 'Virtual Machine',
          role_id: 1,
          role: caption('resource_details', 'role_id', 1),
        },
      ],
    }),
  }
  assertOcsf('api_activity', event)
  return event
}
