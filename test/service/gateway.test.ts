import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { request as httpsRequest } from 'node:https'
import { connect } from 'node:net'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { KeyPair } from '../../src/capabilities/keys.js'
import { makePass } from '../../src/capabilities/pass.js'
import { GATEWAY_LIMITS, type GatewayOptions, openGateway } from '../../src/service/gateway/gateway.js'
import { ROUTES } from '../../src/service/gateway/routes.js'
import { assertOcsf } from '../../src/service/ocsf/index.js'
import { schemaProblems } from './json-schema.js'
import { Served } from './served.js'
import { DB, later, temporaryFolder, WEB } from './support.js'

const SECRET = 'local-secret-of-more-than-32-characters'

interface Document {
  readonly openapi: string
  readonly paths: Record<
    string,
    Record<string, { responses: Record<string, { content: Record<string, { schema: object }> }> }>
  >
  readonly components: { readonly schemas: Record<string, Record<string, unknown>> }
}

async function open(sd: Served, options: Partial<GatewayOptions> = {}, peer = 'admin') {
  const gateway = await openGateway({ endpoint: async () => sd.channel(peer), secret: SECRET, ...options })
  later(() => gateway.close())
  const ask = (path: string, init: RequestInit & { bearer?: string | null } = {}) => {
    const { bearer = SECRET, ...rest } = init
    return fetch(`${gateway.url}${path}`, {
      ...rest,
      headers: { ...(bearer !== null && { authorization: `Bearer ${bearer}` }), ...rest.headers },
    })
  }
  return { gateway, ask }
}

const post = (body: unknown) => ({
  method: 'POST',
  body: JSON.stringify(body),
  headers: { 'content-type': 'application/json' },
})

const lines = (text: string) =>
  text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))

/** Lines of an answer as they come. */
async function* lineStream(response: Response) {
  let rest = ''
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    const parts = (rest + Buffer.from(chunk).toString()).split('\n')
    rest = parts.pop() ?? ''
    for (const line of parts) yield JSON.parse(line)
  }
}

/** A service domain with findings of two tenants, an artifact and a scan loop about web-1. */
async function populated() {
  const sd = new Served()
  const data = Uint8Array.from({ length: 300_000 }, (_, i) => i & 0xff)
  const { uid, finding } = await sd.findings.raise({
    key: 'a',
    about: WEB,
    title: 'Hidden \u202e\u009b2J process',
    severity: 'high',
    artifacts: [{ name: 'dump', data }],
  })
  await sd.raise('b', WEB, 'low')
  await sd.raise('c', DB)
  const stop = new AbortController()
  later(() => stop.abort())
  const loop = sd.scans.begin({
    intervalMs: 3_600_000,
    about: WEB,
    service: 'ids',
    until: [stop.signal],
    context: undefined,
  })
  void (async () => {
    for await (const tick of loop) tick.progress({ done: 1, total: 1, message: 'half' })
  })()
  return { sd, uid, data, digest: finding.unmapped.cloudapp.artifacts?.[0]?.digest ?? '' }
}

describe('the gateway', () => {
  it('answers each operation as its OpenAPI document says', async () => {
    const { sd, uid, data, digest } = await populated()
    const { ask } = await open(sd)
    const document = (await (await ask('/openapi.json', { bearer: null })).json()) as Document
    expect(document.openapi).toBe('3.1.0')
    const schemas = document.components.schemas
    const told = new Set<string>()
    const check = async (path: string, template: string, init: RequestInit = {}) => {
      const method = (init.method ?? 'GET').toLowerCase()
      told.add(`${method} ${template}`)
      const response = await ask(path, init)
      const type = response.headers.get('content-type') ?? ''
      expect({ path, status: response.status, type }).toEqual({ path, status: 200, type: expect.any(String) })
      const content = document.paths[template]?.[method]?.responses['200']?.content[type]
      expect(content, `${path}: ${type}`).toBeDefined()
      if (type === 'application/octet-stream') return response.arrayBuffer()
      const text = await response.text()
      for (const value of lines(text))
        expect(schemaProblems((content?.schema ?? {}) as Record<string, unknown>, value, schemas)).toEqual([])
      // What a hostile VM wrote reaches no terminal as it is.
      expect(text).not.toMatch(/[\p{Cf}\u0080-\u009f]/u)
      return lines(text)
    }
    await check('/v1/describe', '/v1/describe')
    expect(await check('/v1/health', '/v1/health')).toMatchObject([{ status: 'ok' }])
    expect(await check('/v1/findings?limit=2', '/v1/findings')).toMatchObject([{ more: true, findings: [{}, {}] }])
    const [all] = (await check('/v1/findings', '/v1/findings')) as { next: string; findings: { finding: unknown }[] }[]
    expect(all).toMatchObject({ more: false })
    for (const { finding } of all?.findings ?? []) assertOcsf('detection_finding', finding)
    expect(await check(`/v1/findings?since=${all?.next}`, '/v1/findings')).toEqual([
      { findings: [], next: all?.next, more: false },
    ])
    expect(
      await check('/v1/findings?minSeverity=high&status=open,acknowledged&vm=web-1', '/v1/findings'),
    ).toMatchObject([{ findings: [{ finding: { severity: 'High' } }] }])
    const exported = (await check('/v1/findings/export', '/v1/findings/export')) as unknown[]
    expect(exported).toHaveLength(3)
    for (const finding of exported) assertOcsf('detection_finding', finding)
    await check(`/v1/findings/${uid}`, '/v1/findings/{uid}')
    const [done] = (await check(
      `/v1/findings/${uid}/acknowledge`,
      '/v1/findings/{uid}/acknowledge',
      post({ comment: 'x' }),
    )) as {
      finding: unknown
    }[]
    expect(done?.finding).toMatchObject({ status: 'In Progress', comment: 'x' })
    const bytes = (await check(
      `/v1/findings/${uid}/artifacts/${digest}`,
      '/v1/findings/{uid}/artifacts/{digest}',
    )) as ArrayBuffer
    expect(Buffer.compare(Buffer.from(bytes), data)).toBe(0)
    expect(await check('/v1/runs', '/v1/runs', post({ vm: 'web-1' }))).toMatchObject([
      ...[{ type: 'queued' }, { type: 'started' }, { type: 'progress' }, { type: 'finished' }],
      { type: 'done', outcome: 'finished' },
    ])
    told.add('get /v1/findings/watch')
    const watching = await ask('/v1/findings/watch?vm=web-1')
    const records: unknown[] = []
    for await (const record of lineStream(watching)) {
      expect(schemaProblems({ $ref: '#/components/schemas/Record' }, record, schemas)).toEqual([])
      records.push(record)
      if (records.length === 3) await sd.raise('later')
      if (records.length === 4) break
    }
    expect(records).toMatchObject([
      { change: 'create' },
      { change: 'acknowledge' },
      { type: 'live' },
      { change: 'create' },
    ])
    expect([...told].sort()).toEqual(ROUTES.map(({ method, path }) => `${method.toLowerCase()} ${path}`).sort())
    expect(Object.keys(document.paths).sort()).toEqual([...new Set(ROUTES.map(({ path }) => path))].sort())
  })

  it('shows each bearer what is theirs, and another nothing', async () => {
    const { sd, uid } = await populated()
    const [alice, bob] = [KeyPair.generate(), KeyPair.generate()]
    sd.store.owners.set(WEB.uuid, alice.publicKey)
    sd.store.owners.set(DB.uuid, bob.publicKey)
    const { ask } = await open(sd)
    const pass = (key: KeyPair, service = sd.key.publicKey) => makePass(key, { service, expires: '1h' })
    const titles = async (bearer: string) => {
      const response = await ask('/v1/findings', { bearer })
      return (
        (await response.json()) as { findings: { finding: { unmapped: { cloudapp: { key: string } } } }[] }
      ).findings.map((f) => f.finding.unmapped.cloudapp.key)
    }
    expect(await titles(SECRET)).toEqual(['a', 'b', 'c'])
    expect(await titles(pass(alice))).toEqual(['a', 'b'])
    expect(await titles(pass(bob))).toEqual(['c'])
    expect(await titles(pass(KeyPair.generate()))).toEqual([])
    const guessed = async (path: string, init = {}) => {
      const response = await ask(path, { bearer: pass(bob), ...init })
      return {
        status: response.status,
        text: (await response.text()).replaceAll(uid, 'UID').replaceAll('no-such', 'UID'),
      }
    }
    for (const [path, init] of [
      ['/v1/findings/UID', {}],
      ['/v1/findings/UID/acknowledge', post({})],
      [`/v1/findings/UID/artifacts/sha256:${'0'.repeat(64)}`, {}],
    ] as const) {
      const theirs = await guessed(path.replace('UID', uid), init)
      expect(theirs).toEqual(await guessed(path.replace('UID', 'no-such'), init))
      expect(theirs.status).toBe(404)
    }
    const channel = sd.channel('admin').binding
    const bound = makePass(alice, { service: sd.key.publicKey, expires: '1h', channel })
    for (const bearer of [null, 'x', `${SECRET}x`, bound, pass(alice, bob.publicKey), pass(alice).slice(0, -2)]) {
      const response = await ask('/v1/findings', { bearer })
      expect(response.status, String(bearer)).toBe(401)
      expect(response.headers.get('www-authenticate')).toBe('Bearer')
      await response.text()
    }
    // Without a local secret, none opens it.
    const closed = await open(sd, { secret: undefined } as never)
    expect((await closed.ask('/v1/findings')).status).toBe(401)
  })

  it('asks with its key, where it has one, for who bears the secret and for nobody else', async () => {
    const { sd } = await populated()
    const alice = KeyPair.generate()
    sd.store.owners.set(WEB.uuid, alice.publicKey)
    const { ask } = await open(sd, { key: alice }, 'nobody')
    const count = async (bearer?: string) =>
      ((await (await ask('/v1/findings', bearer === undefined ? {} : { bearer })).json()) as { findings: [] }).findings
        .length
    expect(await count()).toBe(2)
    expect(await count(makePass(KeyPair.generate(), { service: sd.key.publicKey, expires: '1h' }))).toBe(0)
  })

  it('refuses what it does not know, and bounds what it takes', async () => {
    const { sd, uid } = await populated()
    const { ask, gateway } = await open(sd)
    const refused: [string, number, RequestInit?][] = [
      ['/v1/findings?severity=high', 400],
      ['/v1/findings?limit=0', 400],
      ['/v1/findings?limit=501', 400],
      ['/v1/findings?limit=1&limit=2', 400],
      ['/v1/findings?minSeverity=huge', 400],
      ['/v1/findings?since=nonsense', 400],
      ['/v1/findings/export?since=nonsense', 400],
      ['/v1/findings/%ff', 400],
      [`/v1/findings/${'x'.repeat(129)}`, 400],
      [`/v1/findings/${uid}/artifacts/sha256:0`, 400],
      ['/v1/nothing', 404],
      ['/', 404],
      ['/v1/findings/watch', 405, { method: 'POST' }],
      [`/v1/findings/${uid}`, 405, { method: 'DELETE' }],
      [
        `/v1/findings/${uid}/acknowledge`,
        415,
        { method: 'POST', body: '{}', headers: { 'content-type': 'text/plain' } },
      ],
      [`/v1/findings/${uid}/acknowledge`, 400, { ...post({}), body: '{' }],
      [`/v1/findings/${uid}/acknowledge`, 400, post({ by: 'somebody else' })],
      [`/v1/findings/${uid}/acknowledge`, 413, post({ comment: 'x'.repeat(GATEWAY_LIMITS.body) })],
      [`/v1/findings?vm=${'x'.repeat(GATEWAY_LIMITS.url)}`, 414],
      ['/v1/runs', 404, post({ vm: 'no-such' })],
    ]
    for (const [path, status, init] of refused) {
      const response = await ask(path, init)
      const body = (await response.json()) as { error: { code: string } }
      expect({ path: path.slice(0, 60), status: response.status }).toEqual({ path: path.slice(0, 60), status })
      expect(body.error.code).toMatch(/^ERR_CLOUDAPP_/)
    }
    const long = await new Promise<string>((resolve) => {
      const { port } = new URL(gateway.url)
      const socket = connect(Number(port), '127.0.0.1')
      socket.end(`GET /v1/health HTTP/1.1\r\nHost: x\r\nX: ${'y'.repeat(GATEWAY_LIMITS.headers)}\r\n\r\n`)
      socket.once('data', (chunk) => resolve(String(chunk)))
    })
    expect(long).toMatch(/^HTTP\/1\.1 431 /)
    const streams = await Promise.all(Array.from({ length: 17 }, () => ask('/v1/findings/watch?minSeverity=fatal')))
    const said = await Promise.all(
      streams.map(async (response) => {
        for await (const record of lineStream(response)) return record as { type: string; error?: { code: string } }
      }),
    )
    // One session of the service domain has sixteen watches: one more is told so.
    expect(said.filter((r) => r?.type === 'live')).toHaveLength(16)
    expect(said.find((r) => r?.type === 'error')?.error?.code).toBe('ERR_CLOUDAPP_LIMIT')
    await expect(open(sd, { host: '0.0.0.0' })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    await expect(open(sd, { secret: 'short' })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    // What can never be reached is no gateway that listens; a service domain that is not there yet may come.
    await expect(open(sd, { endpoint: 'http://x' })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_UNSUPPORTED' })
    await expect(open(sd, { endpoint: 'tls:x:1' })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    expect((await (await open(sd, { endpoint: 'none.sock' })).ask('/v1/health')).status).toBe(503)
    await expect(open(sd, { hots: '::1' } as never)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_UNKNOWN_OPTION' })
  })

  it('says so when the service domain is away, and serves again when it is back', async () => {
    const { sd } = await populated()
    let away = false
    const { ask } = await open(sd, {
      endpoint: async () => {
        const channel = sd.channel('admin')
        if (away) await channel.close()
        return channel
      },
    })
    expect((await ask('/v1/health')).status).toBe(200)
    away = true
    for (const watching of [await ask('/v1/findings/watch?minSeverity=fatal')]) {
      const records = lineStream(watching)
      await records.next()
      await sd.server.drop()
      expect((await records.next()).value).toMatchObject({ type: 'error', error: { code: 'ERR_CLOUDAPP_CLOSED' } })
    }
    expect((await ask('/v1/health')).status).toBe(503)
    away = false
    expect((await ask('/v1/health')).status).toBe(200)
  })

  it('serves over TLS, and then on other addresses too', async () => {
    const folder = temporaryFolder()
    const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')]
    const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1', '-days', '1']
    const made = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', key]
    execFileSync('openssl', [...made, '-out', cert, ...subject], { stdio: 'ignore' })
    const { sd } = await populated()
    const tls = { key: readFileSync(key, 'utf8'), cert: readFileSync(cert, 'utf8') }
    const { gateway } = await open(sd, { tls, host: '0.0.0.0' })
    const { port } = new URL(gateway.url)
    const status = await new Promise((resolve, reject) => {
      const headers = { authorization: `Bearer ${SECRET}` }
      httpsRequest({ host: '127.0.0.1', port, path: '/v1/health', ca: tls.cert, headers }, (response) => {
        response.resume()
        resolve(response.statusCode)
      })
        .once('error', reject)
        .end()
    })
    expect(status).toBe(200)
  })
})
