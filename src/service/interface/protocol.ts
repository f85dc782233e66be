import * as v from 'valibot'
import { CloudAppError } from '../../errors.js'
import { SEVERITIES, STATUSES } from '../vocabulary.js'

/**
 * The standard interface as it stands on the wire: what a client calls, what a service domain answers. docs/interface.md
 * describes it for implementations in other languages.
 */

/** Versions this library speaks. Two sides use the lower of their newest versions. */
export const INTERFACE_VERSION = 1
export const OLDEST_VERSION = 1

/** What a service domain takes from, and gives to, one client. */
export const INTERFACE_LIMITS = {
  /** Findings in one page, records in one answer of a watch. */
  page: 500,
  /** Characters of OCSF JSON in one answer, beyond its first finding. */
  pageBytes: 1024 * 1024,
  /** Open watches and runs in one session. */
  watches: 16,
  runs: 8,
  /** Bytes of an artifact in one answer. */
  artifactBytes: 256 * 1024,
  /** Records, and characters of JSON, that wait for a watching client before it gets a gap. */
  queue: 1024,
  queueBytes: 8 * 1024 * 1024,
  /** Milliseconds one `next` waits for something to happen. */
  waitMs: 30_000,
  /** Events that wait for a client of a run; older progress is dropped first. */
  runEvents: 256,
} as const

/** First call of a client: which versions it speaks. */
export interface OpenRequest {
  /** The newest version the client speaks. */
  readonly version: number
  /** Free text for logs; never trusted. */
  readonly client?: string
  /** A customer's pass, made out to this service domain. */
  readonly pass?: string
}

export interface OpenAnswer {
  /** The version both will speak: the lower of the two. */
  readonly version: number
  readonly service: WireService
}

/** The object a client finds first. */
export interface WireRoot {
  open(request: OpenRequest): Promise<OpenAnswer>
}

/** Version 1. */
export interface WireService {
  describe(): Promise<Description>
  health(): Promise<Health>
  readonly findings: WireFindings
  readonly artifacts: WireArtifacts
  run(request: RunRequest): Promise<WireRun>
}

export interface WireFindings {
  list(query: ListQuery): Promise<WirePage>
  get(uid: string): Promise<WireFinding>
  acknowledge(uid: string, note: { readonly comment?: string }): Promise<WireFinding>
  watch(query: WatchQuery): Promise<WireWatch>
}

export interface WireArtifacts {
  /** `length` bytes from `at` on, fewer at the end, of an artifact that the finding names. */
  read(request: ArtifactRequest): Promise<WireArtifactPart>
}

export interface WireWatch {
  /** Waits for records, at most `waitMs`; empty if there were none. One call at a time. */
  next(options: { readonly max?: number; readonly waitMs?: number }): Promise<{ readonly records: WireRecord[] }>
  close(): void
}

export interface WireRun {
  /** Waits for events, at most `waitMs`. One call at a time. After `done` there are none. */
  next(options: { readonly waitMs?: number }): Promise<{ readonly events: RunEvent[] }>
  cancel(): void
}

const text = (limit: number) => v.pipe(v.string(), v.maxLength(limit))
const whole = (least: number, most: number) => v.pipe(v.number(), v.integer(), v.minValue(least), v.maxValue(most))
const milliseconds = whole(0, Number.MAX_SAFE_INTEGER)
const cursor = text(64)
const uid = text(128)

const filter = {
  /** Only findings of at least this severity. */
  minSeverity: v.optional(v.picklist(SEVERITIES)),
  /** Only findings in these states. */
  status: v.optional(v.array(v.picklist(Object.keys(STATUSES) as (keyof typeof STATUSES)[]))),
  /** Only findings about the VM of this name or uuid. */
  vm: v.optional(text(256)),
  /** Begin after this cursor. */
  since: v.optional(cursor),
}

const artifactRequest = v.strictObject({
  /** uid of the finding. */
  finding: uid,
  digest: v.pipe(v.string(), v.regex(/^sha256:[0-9a-f]{64}$/, 'must be sha256: and 64 hexadecimal digits')),
  at: v.optional(whole(0, Number.MAX_SAFE_INTEGER)),
  length: v.optional(whole(1, INTERFACE_LIMITS.artifactBytes)),
})
const listQuery = v.strictObject({ ...filter, limit: v.optional(whole(1, INTERFACE_LIMITS.page)) })
const watchQuery = v.strictObject(filter)
const runRequest = v.strictObject({ vm: v.optional(text(256)) })
export type ListQuery = v.InferOutput<typeof listQuery>
export type WatchQuery = v.InferOutput<typeof watchQuery>
export type ArtifactRequest = v.InferOutput<typeof artifactRequest>
export type RunRequest = v.InferOutput<typeof runRequest>

/** Arguments of calls, checked by the service domain. Unknown keys are refused. */
export const REQUESTS = {
  open: v.strictObject({ version: whole(1, 1_000_000), client: v.optional(text(256)), pass: v.optional(text(512)) }),
  list: listQuery,
  watch: watchQuery,
  uid,
  acknowledge: v.strictObject({ comment: v.optional(text(1024)) }),
  next: v.strictObject({
    max: v.optional(whole(1, INTERFACE_LIMITS.page)),
    waitMs: v.optional(whole(0, INTERFACE_LIMITS.waitMs)),
  }),
  run: runRequest,
  artifact: artifactRequest,
  runNext: v.strictObject({ waitMs: v.optional(whole(0, INTERFACE_LIMITS.waitMs)) }),
}

const change = v.picklist(['create', 'update', 'acknowledge', 'close'])
// The OCSF event as JSON text: what is stored is what is sent, whatever keys the evidence has.
const wireFinding = v.object({ cursor, change, json: text(4 * 1024 * 1024) })
const gap = v.object({ count: whole(0, Number.MAX_SAFE_INTEGER), exact: v.boolean(), cursor })
const wireRecord = v.variant('type', [
  v.object({ type: v.literal('finding'), ...wireFinding.entries }),
  v.object({ type: v.literal('gap'), reason: v.picklist(['slow', 'retention']), ...gap.entries }),
  v.object({ type: v.literal('live') }),
])
const artifactPart = v.object({
  bytes: v.custom<Uint8Array>(
    (value) => value instanceof Uint8Array && value.length <= INTERFACE_LIMITS.artifactBytes,
    `must be at most ${INTERFACE_LIMITS.artifactBytes} bytes`,
  ),
  /** Bytes of the whole artifact. */
  total: whole(0, Number.MAX_SAFE_INTEGER),
})
const page = v.object({
  findings: v.pipe(v.array(wireFinding), v.maxLength(INTERFACE_LIMITS.page)),
  /** Where the next page begins; absent if this client was never given one. */
  next: v.optional(cursor),
  more: v.boolean(),
  /** Findings after `since` that retention has removed. */
  gap: v.optional(gap),
})
const description = v.object({
  service: v.object({
    name: text(128),
    title: text(256),
    version: text(64),
    vendor: text(128),
    key: v.optional(text(128)),
  }),
  interface: v.object({ version: whole(1, 1_000_000), ocsf: text(32) }),
  rights: v.pipe(
    v.array(v.object({ right: text(64), reason: text(1024), optional: v.optional(v.boolean()) })),
    v.maxLength(64),
  ),
  publishes: v.pipe(v.array(text(128)), v.maxLength(64)),
})
const healthReason = v.object({ code: text(64), message: text(1024), vm: v.optional(text(256)), since: milliseconds })
const health = v.object({
  status: v.picklist(['ok', 'degraded', 'closing']),
  since: milliseconds,
  reasons: v.pipe(v.array(healthReason), v.maxLength(256)),
  /** VMs it watches, of those this client may ask about. */
  vms: v.pipe(v.array(v.object({ name: text(256), uuid: text(64) })), v.maxLength(4096)),
})
const runEvent = v.variant('type', [
  v.object({ type: v.literal('queued'), vm: text(256) }),
  v.object({ type: v.literal('started'), vm: text(256) }),
  v.object({
    type: v.literal('progress'),
    vm: text(256),
    done: v.optional(v.number()),
    total: v.optional(v.number()),
    message: v.optional(text(1024)),
  }),
  v.object({ type: v.literal('finished'), vm: text(256), changes: whole(0, Number.MAX_SAFE_INTEGER) }),
  v.object({ type: v.literal('failed'), vm: text(256), code: text(64), message: text(1024) }),
  v.object({ type: v.literal('dropped'), count: whole(1, Number.MAX_SAFE_INTEGER) }),
  v.object({ type: v.literal('done'), outcome: v.picklist(['finished', 'failed', 'cancelled']) }),
])

/** Answers, checked by the client: a service domain is no more trusted than a client. Further keys are left out. */
export const ANSWERS = {
  open: v.object({ version: whole(1, 1_000_000) }),
  description,
  health,
  page,
  artifact: artifactPart,
  finding: wireFinding,
  records: v.object({ records: v.pipe(v.array(wireRecord), v.maxLength(INTERFACE_LIMITS.page + 2)) }),
  runEvents: v.object({ events: v.pipe(v.array(runEvent), v.maxLength(INTERFACE_LIMITS.runEvents + 1)) }),
}

export type Description = v.InferOutput<typeof description>
export type Health = v.InferOutput<typeof health>
export type HealthReason = v.InferOutput<typeof healthReason>
export type WireFinding = v.InferOutput<typeof wireFinding>
export type WireGap = v.InferOutput<typeof gap>
export type WirePage = v.InferOutput<typeof page>
export type WireRecord = v.InferOutput<typeof wireRecord>
export type WireArtifactPart = v.InferOutput<typeof artifactPart>
export type RunEvent = v.InferOutput<typeof runEvent>

/** What a client sent, or ERR_CLOUDAPP_INVALID_ARGUMENT that says where it is wrong. */
export function request<T extends v.GenericSchema>(what: string, schema: T, value: unknown): v.InferOutput<T> {
  return checked('ERR_CLOUDAPP_INVALID_ARGUMENT', what, schema, value)
}

/** What a service domain answered, or ERR_CLOUDAPP_PROTOCOL that says where it is wrong. */
export function answer<T extends v.GenericSchema>(what: string, schema: T, value: unknown): v.InferOutput<T> {
  return checked('ERR_CLOUDAPP_PROTOCOL', what, schema, value)
}

function checked<T extends v.GenericSchema>(
  code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' | 'ERR_CLOUDAPP_PROTOCOL',
  what: string,
  schema: T,
  value: unknown,
): v.InferOutput<T> {
  const result = v.safeParse(schema, value, { abortEarly: true })
  if (result.success) return result.output
  const issue = result.issues[0]
  const path = v.getDotPath(issue)
  throw new CloudAppError(
    code,
    `${what}: ${path === null ? '' : `${path.slice(0, 100)}: `}${issue.message.slice(0, 300)}`,
  )
}
