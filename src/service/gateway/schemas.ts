import { INTERFACE_LIMITS } from '../interface/protocol.js'
import { OCSF_VERSION } from '../ocsf/facts.js'
import { SEVERITIES, STATUSES } from '../vocabulary.js'

/** JSON Schema 2020-12, as OpenAPI 3.1 has it. */
export type Schema = { readonly [key: string]: unknown }

const text = { type: 'string' }
const whole = { type: 'integer', minimum: 0 }
const object = (properties: Record<string, Schema>, optional: readonly string[] = []): Schema => ({
  type: 'object',
  properties,
  required: Object.keys(properties).filter((name) => !optional.includes(name)),
  additionalProperties: false,
})
export const ref = (name: string): Schema => ({ $ref: `#/components/schemas/${name}` })
const list = (items: Schema): Schema => ({ type: 'array', items })

/** The kinds of value the gateway gives out, by name. */
export const SCHEMAS: Readonly<Record<string, Schema>> = {
  DetectionFinding: {
    type: 'object',
    description: `An OCSF ${OCSF_VERSION} Detection Finding: https://schema.ocsf.io/${OCSF_VERSION}/classes/detection_finding`,
    properties: {
      class_uid: { const: 2004 },
      category_uid: { const: 2 },
      activity_id: { enum: [1, 2, 3] },
      type_uid: { enum: [200401, 200402, 200403] },
      severity_id: { enum: [1, 2, 3, 4, 5, 6] },
      status_id: { enum: [1, 2, 4] },
      time: whole,
      count: { type: 'integer', minimum: 1 },
      message: text,
      metadata: { type: 'object', required: ['version', 'product'] },
      finding_info: { type: 'object', properties: { uid: text, title: text }, required: ['uid', 'title'] },
      resources: { type: 'array', minItems: 1 },
      unmapped: { type: 'object', required: ['cloudapp'] },
    },
    required: [
      ...['class_uid', 'category_uid', 'activity_id', 'type_uid', 'severity_id', 'status_id', 'time', 'metadata'],
      ...['finding_info', 'resources', 'unmapped'],
    ],
  },
  Change: { enum: ['create', 'update', 'acknowledge', 'close'] },
  Finding: object({ cursor: text, change: ref('Change'), finding: ref('DetectionFinding') }),
  Gap: object({ count: whole, exact: { type: 'boolean' }, reason: { enum: ['slow', 'retention'] } }),
  Page: object({ findings: list(ref('Finding')), next: text, more: { type: 'boolean' }, gap: ref('Gap') }, [
    'next',
    'gap',
  ]),
  Record: {
    oneOf: [
      object({ type: { const: 'finding' }, cursor: text, change: ref('Change'), finding: ref('DetectionFinding') }),
      object({
        type: { const: 'gap' },
        count: whole,
        exact: { type: 'boolean' },
        reason: { enum: ['slow', 'retention'] },
      }),
      object({ type: { const: 'live' } }),
      ref('ErrorRecord'),
    ],
  },
  ErrorRecord: object({ type: { const: 'error' }, error: ref('ErrorBody') }),
  RunEvent: {
    oneOf: [
      object({ type: { enum: ['queued', 'started'] }, vm: text }),
      object(
        { type: { const: 'progress' }, vm: text, done: { type: 'number' }, total: { type: 'number' }, message: text },
        [...['done', 'total', 'message']],
      ),
      object({ type: { const: 'finished' }, vm: text, changes: whole }),
      object({ type: { const: 'failed' }, vm: text, code: text, message: text }),
      object({ type: { const: 'dropped' }, count: whole }),
      object({ type: { const: 'done' }, outcome: { enum: ['finished', 'failed', 'cancelled'] } }),
      ref('ErrorRecord'),
    ],
  },
  Description: object({
    service: object({ name: text, title: text, version: text, vendor: text, key: text }, ['key']),
    interface: object({ version: whole, ocsf: text }),
    rights: list(object({ right: text, reason: text, optional: { type: 'boolean' } }, ['optional'])),
    publishes: list(text),
  }),
  Health: object({
    status: { enum: ['ok', 'degraded', 'closing'] },
    since: whole,
    reasons: list(object({ code: text, message: text, vm: text, since: whole }, ['vm'])),
    vms: list(object({ name: text, uuid: text })),
  }),
  ErrorBody: object({ code: { type: 'string', pattern: '^ERR_CLOUDAPP_[A-Z_]+$' }, message: text }),
  Error: object({ error: ref('ErrorBody') }),
}

/** A parameter of a request. */
export interface Parameter {
  readonly in: 'query' | 'path'
  readonly description: string
  readonly schema: Schema
}

const query = (description: string, schema: Schema): Parameter => ({ in: 'query', description, schema })

export const FILTER: Readonly<Record<string, Parameter>> = {
  minSeverity: query('Only this and worse.', { enum: [...SEVERITIES] }),
  status: query('Only these, with commas between them.', {
    type: 'string',
    pattern: `^(${Object.keys(STATUSES).join('|')})(,(${Object.keys(STATUSES).join('|')}))*$`,
  }),
  vm: query('Only about the VM of this name or uuid.', { type: 'string', maxLength: 256 }),
  since: query('Only what changed after this cursor.', { type: 'string', maxLength: 64 }),
}

export const LIMIT: Parameter = query('At most so many; 100 by default.', {
  type: 'integer',
  minimum: 1,
  maximum: INTERFACE_LIMITS.page,
})

export const UID: Parameter = {
  in: 'path',
  description: '`finding_info.uid` of a finding.',
  schema: { type: 'string', maxLength: 128 },
}

export const DIGEST: Parameter = {
  in: 'path',
  description: '`digest` of an artifact that the finding names.',
  schema: { type: 'string', pattern: '^sha256:[0-9a-f]{64}$' },
}
