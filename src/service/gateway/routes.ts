import * as v from 'valibot'
import { CloudAppError } from '../../errors.js'
import { nearest } from '../../options.js'
import type { FindingFilter, SdClient } from '../client.js'
import type { FindingGap } from '../client-streams.js'
import { request as checked } from '../interface/protocol.js'
import type { FindingStatus, Severity } from '../vocabulary.js'
import { DIGEST, FILTER, LIMIT, type Parameter, ref, type Schema, UID } from './schemas.js'

/** One request, as a route sees it. */
export interface Asked {
  readonly client: SdClient
  /** Of the path and the query; only those the route knows, each once. */
  readonly values: Readonly<Record<string, string>>
  /** The JSON of the body; undefined without one. */
  readonly body: unknown
  /** Fires when the asker has gone, the gateway closes, or (for what is no stream) time is up. */
  readonly signal: AbortSignal
}

/** What a route answers: a document, lines of JSON, or bytes. */
export type Answer =
  | { readonly kind: 'json'; readonly value: unknown }
  | { readonly kind: 'lines'; readonly lines: AsyncIterable<unknown>; readonly headers?: Record<string, string> }
  | { readonly kind: 'bytes'; readonly bytes: AsyncIterable<Uint8Array> }

/** One operation of the HTTP view: how it is called, described and answered. */
export interface Route {
  readonly method: 'GET' | 'POST'
  /** With `{name}` for a part of one segment. */
  readonly path: string
  readonly id: string
  readonly summary: string
  readonly parameters: Readonly<Record<string, Parameter>>
  readonly body?: Schema
  readonly answers: { readonly type: string; readonly schema: Schema }
  /** It goes on until one side ends it. */
  readonly stream?: true
  run(asked: Asked): Promise<Answer>
}

const JSON_TYPE = 'application/json'
export const LINES_TYPE = 'application/x-ndjson'

const acknowledgement = v.strictObject({ comment: v.optional(v.pipe(v.string(), v.maxLength(1024))) })
const scan = v.strictObject({ vm: v.optional(v.pipe(v.string(), v.maxLength(256))) })

export const ROUTES: readonly Route[] = [
  {
    method: 'GET',
    path: '/v1/describe',
    id: 'describe',
    summary: 'What the service domain says of itself.',
    parameters: {},
    answers: { type: JSON_TYPE, schema: ref('Description') },
    run: async ({ client, signal }) => json(await client.describe({ signal })),
  },
  {
    method: 'GET',
    path: '/v1/health',
    id: 'health',
    summary: 'How the service domain is, as far as it concerns your VMs.',
    parameters: {},
    answers: { type: JSON_TYPE, schema: ref('Health') },
    run: async ({ client, signal }) => json(await client.health({ signal })),
  },
  {
    method: 'GET',
    path: '/v1/findings',
    id: 'listFindings',
    summary: 'A page of findings, each once, by its newest change, oldest change first.',
    parameters: { ...FILTER, limit: LIMIT },
    answers: { type: JSON_TYPE, schema: ref('Page') },
    run: page,
  },
  {
    method: 'GET',
    path: '/v1/findings/export',
    id: 'exportFindings',
    summary: 'All findings that match, as lines of OCSF JSON, for a SIEM.',
    parameters: FILTER,
    answers: { type: LINES_TYPE, schema: ref('DetectionFinding') },
    stream: true,
    run: exported,
  },
  {
    method: 'GET',
    path: '/v1/findings/watch',
    id: 'watchFindings',
    summary: 'First what is stored (after `since`), then each change as it is made, as lines of JSON.',
    parameters: FILTER,
    answers: { type: LINES_TYPE, schema: ref('Record') },
    stream: true,
    run: async ({ client, values, signal }) => ({ kind: 'lines', lines: watched(client, filterOf(values), signal) }),
  },
  {
    method: 'GET',
    path: '/v1/findings/{uid}',
    id: 'getFinding',
    summary: 'One finding.',
    parameters: { uid: UID },
    answers: { type: JSON_TYPE, schema: ref('Finding') },
    run: async ({ client, values: { uid = '' }, signal }) => json(await client.findings.get(uid, { signal })),
  },
  {
    method: 'POST',
    path: '/v1/findings/{uid}/acknowledge',
    id: 'acknowledgeFinding',
    summary: 'Marks a finding as seen.',
    parameters: { uid: UID },
    body: { type: 'object', properties: { comment: { type: 'string', maxLength: 1024 } }, additionalProperties: false },
    answers: { type: JSON_TYPE, schema: ref('Finding') },
    async run({ client, values: { uid = '' }, body = {}, signal }) {
      const { comment } = checked('acknowledge', acknowledgement, body)
      return json(await client.findings.acknowledge(uid, { signal, ...(comment !== undefined && { comment }) }))
    },
  },
  {
    method: 'GET',
    path: '/v1/findings/{uid}/artifacts/{digest}',
    id: 'getArtifact',
    summary: 'The bytes of an artifact. The connection is cut if they are not what the digest says.',
    parameters: { uid: UID, digest: DIGEST },
    answers: { type: 'application/octet-stream', schema: { type: 'string', contentEncoding: 'binary' } },
    stream: true,
    run: async ({ client, values: { uid = '', digest = '' }, signal }) => ({
      kind: 'bytes',
      bytes: client.artifacts.read(uid, digest, { signal }),
    }),
  },
  {
    method: 'POST',
    path: '/v1/runs',
    id: 'run',
    summary: 'Asks for a scan now and tells how it goes, as lines of JSON; ending the connection gives it up.',
    parameters: {},
    body: { type: 'object', properties: { vm: { type: 'string', maxLength: 256 } }, additionalProperties: false },
    answers: { type: LINES_TYPE, schema: ref('RunEvent') },
    stream: true,
    async run({ client, body = {}, signal }) {
      const { vm } = checked('run', scan, body)
      return { kind: 'lines', lines: await client.run({ signal, ...(vm !== undefined && { vm }) }) }
    },
  },
]

async function page({ client, values, signal }: Asked): Promise<Answer> {
  const limit = Number(values.limit ?? 100)
  if (!Number.isInteger(limit) || limit < 1 || limit > (LIMIT.schema.maximum as number)) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `limit is a number from 1 to ${LIMIT.schema.maximum}`)
  }
  const findings: unknown[] = []
  const gaps: FindingGap[] = []
  let next = values.since
  let more = false
  const onGap = (gap: FindingGap) => gaps.push(gap)
  for await (const found of client.findings.list({ ...filterOf(values), limit: limit + 1, signal, onGap })) {
    more = findings.length === limit
    if (more) break
    findings.push(found)
    next = found.cursor
  }
  return json({ findings, ...(next !== undefined && { next }), more, ...(gaps[0] && { gap: gaps[0] }) })
}

/** The first finding is fetched before the answer begins, so that what is wrong is still told by its status. */
async function exported({ client, values, signal }: Asked): Promise<Answer> {
  const headers: Record<string, string> = {}
  const onGap = ({ count, exact }: FindingGap) => {
    headers['cloudapp-gap'] = `${count}${exact ? '' : '+'}`
  }
  const found = client.findings.list({ ...filterOf(values), signal, onGap })
  const first = await found.next()
  async function* lines() {
    if (first.done) return
    yield first.value.finding
    for await (const { finding } of found) yield finding
  }
  return { kind: 'lines', lines: lines(), headers }
}

/** The records of a watch as they are on the wire: gaps and the live mark in their places. */
async function* watched(client: SdClient, filter: FindingFilter, signal: AbortSignal): AsyncGenerator<unknown> {
  const marks: unknown[] = []
  let wake: () => void = () => {}
  const mark = (record: unknown) => {
    marks.push(record)
    wake()
  }
  const found = client.findings.watch({
    ...filter,
    signal,
    onGap: (gap) => mark({ type: 'gap', ...gap }),
    onLive: () => mark({ type: 'live' }),
  })
  for (let next = found.next(); ; ) {
    // Whoever reads the lines may be gone before it fails.
    next.catch(() => undefined)
    // A mark may come long before the finding after it.
    const marked = new Promise<void>((resolve) => {
      wake = resolve
    })
    if (marks.length === 0) await Promise.race([marked, next])
    yield* marks.splice(0)
    const step = await Promise.race([next, undefined])
    if (step === undefined) continue
    yield* marks.splice(0)
    if (step.done) return
    yield { type: 'finding', ...step.value }
    next = found.next()
  }
}

function filterOf(values: Readonly<Record<string, string>>): FindingFilter {
  const { minSeverity, status, vm, since } = values
  return {
    ...(minSeverity !== undefined && { minSeverity: minSeverity as Severity }),
    ...(status !== undefined && { status: status.split(',') as FindingStatus[] }),
    ...(vm !== undefined && { vm }),
    ...(since !== undefined && { since }),
  }
}

const json = (value: unknown): Answer => ({ kind: 'json', value })

/** The route of a request and the values in its path; `allow` lists the methods of a path that has others. */
export function routeOf(
  method: string,
  path: string,
): { readonly route?: Route; readonly values: Record<string, string>; readonly allow: readonly string[] } {
  const segments = path.split('/')
  const allow: string[] = []
  // Literal paths first: /v1/findings/watch is no finding's uid.
  const ordered = [...ROUTES].sort((a, b) => Number(a.path.includes('{')) - Number(b.path.includes('{')))
  for (const route of ordered) {
    const values = match(route.path.split('/'), segments)
    if (!values) continue
    if (route.method === method) return { route, values, allow: [] }
    allow.push(route.method)
    if (!route.path.includes('{')) break
  }
  return { values: {}, allow }
}

function match(pattern: readonly string[], segments: readonly string[]): Record<string, string> | undefined {
  if (pattern.length !== segments.length) return undefined
  const values: Record<string, string> = {}
  for (const [index, part] of pattern.entries()) {
    const segment = segments[index] as string
    const name = /^\{(\w+)\}$/.exec(part)?.[1]
    if (name === undefined ? part !== segment : segment === '') return undefined
    if (name !== undefined) values[name] = decoded(segment)
  }
  return values
}

function decoded(segment: string): string {
  try {
    return decodeURIComponent(segment)
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'The path is no UTF-8', { cause })
  }
}

/** The query of a request; unknown and repeated names are refused. */
export function queryOf(route: Route, query: URLSearchParams): Record<string, string> {
  const known = Object.entries(route.parameters).flatMap(([name, { in: where }]) => (where === 'query' ? [name] : []))
  const values: Record<string, string> = {}
  for (const [name, value] of query) {
    if (!known.includes(name)) {
      const guess = nearest(name, known)
      const hint = guess === undefined ? `known: ${known.join(', ') || 'none'}` : `did you mean ${guess}?`
      throw new CloudAppError('ERR_CLOUDAPP_UNKNOWN_OPTION', `There is no parameter ${name.slice(0, 40)}; ${hint}`)
    }
    if (Object.hasOwn(values, name)) {
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `The parameter ${name} is given twice`)
    }
    values[name] = value
  }
  return values
}
