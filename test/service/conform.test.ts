import { join } from 'node:path'
import { RpcTarget } from 'capnweb'
import { describe, expect, it } from 'vitest'
import { KeyPair } from '../../src/capabilities/keys.js'
import { type CheckResult, Subject } from '../../src/service/conform/check.js'
import { CHECKS, conform, runCheck } from '../../src/service/conform/conform.js'
import { ClientState } from '../../src/service/interface/asker.js'
import type { WireService } from '../../src/service/interface/protocol.js'
import { Root } from '../../src/service/interface/session.js'
import type { Channel } from '../../src/transport/channel.js'
import { decodeBody, FRAME_LIMITS } from '../../src/transport/frames.js'
import { memoryChannelPair, openSession } from '../../src/transport/index.js'
import { listenUnix } from '../../src/transport/unix.js'
import { Served } from './served.js'
import { DB, later, temporaryFolder, WEB } from './support.js'

const failures = (results: readonly CheckResult[]) => results.filter(({ outcome }) => outcome === 'failed')

/** Findings of all severities and states about two VMs, an artifact, and a scan loop. */
async function populated(): Promise<Served> {
  const sd = new Served()
  for (let i = 0; i < 12; i++) await sd.raise(`k${i}`, i % 3 ? WEB : DB, i % 2 ? 'low' : 'high')
  await sd.findings.close('k1')
  const data = new Uint8Array(400_000).fill(7)
  await sd.findings.raise({ key: 'a', about: WEB, title: 'a', severity: 'fatal', artifacts: [{ name: 'a', data }] })
  const { uid } = await sd.raise('seen')
  await sd.findings.acknowledge(uid, 'all', 'somebody')
  const stop = new AbortController()
  later(() => stop.abort())
  const about = { ...WEB }
  const loop = sd.scans.begin({
    intervalMs: 3_600_000,
    about,
    service: 'ids',
    until: [stop.signal],
    context: undefined,
  })
  void (async () => {
    for await (const tick of loop) tick.progress({ done: 1 })
  })()
  return sd
}

describe('conform', () => {
  it('passes on our own service domain, over a real socket, with nothing skipped', async () => {
    const sd = await populated()
    const path = join(temporaryFolder(), 'sd.sock')
    const listener = await listenUnix({ path, onChannel: (channel) => sd.server.serve(channel) })
    later(() => listener.close())
    const results = await conform(path, { run: true, acknowledge: true })
    expect(results.filter(({ outcome }) => outcome !== 'passed')).toEqual([])
    expect(results.map(({ name }) => name)).toEqual(CHECKS.map(({ name }) => name))
    expect(new Set(results.map(({ name }) => name)).size).toBe(CHECKS.length)
  })

  it('changes nothing unless it may, and skips what there is nothing to look at for', async () => {
    const sd = new Served()
    const { uid } = await sd.raise('a')
    const before = sd.store.sequence
    const results = await conform(async () => sd.channel('admin'))
    expect(failures(results)).toEqual([])
    expect(sd.store.sequence).toBe(before)
    expect(sd.store.get(uid, 'all')?.status).toBe(1)
    const skipped = results.filter(({ outcome }) => outcome === 'skipped').map(({ name }) => name)
    expect(skipped).toEqual(['findings.acknowledge', 'run.events', 'run.cancel', 'artifacts.read'])
    const empty = failures(await conform(async () => sd.channel('nobody')))
    expect(empty).toEqual([])
  })

  it('refuses to check nothing', async () => {
    const checked = conform('none.sock', { only: 'findigns' })
    await expect(checked).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
  })

  it('asks as a customer, by a key', async () => {
    const sd = await populated()
    const key = KeyPair.generate()
    const outcomes = async () => {
      const results = await conform(async () => sd.channel('nobody'), { key, only: 'findings.get' })
      return [...new Set(results.map(({ outcome }) => outcome))]
    }
    expect(await outcomes()).toContain('skipped')
    sd.store.owners.set(WEB.uuid, key.publicKey)
    expect(await outcomes()).toEqual(['passed'])
  })

  // Each breaks one rule; the check that finds it is named.
  type Service = WireService & { findings: Record<string, never> }
  const broken: Record<string, (service: Service) => Record<string, unknown>> = {
    describe: () => ({ describe: async () => ({ service: {} }) }),
    health: () => ({ health: async () => ({ status: 'fine' }) }),
    'findings.list': (s) => ({
      findings: patched(s.findings, {
        list: async (q: never) =>
          changed(await s.findings.list(q), (json) => json.replace('"class_uid":2004', '"class_uid":2005')),
      }),
    }),
    'findings.list.arguments': (s) => ({
      findings: patched(s.findings, {
        list: ({ nonsense: _, ...query }: Record<string, unknown> = {}) => s.findings.list(query as never),
      }),
    }),
    'findings.list.pages': (s) => ({
      findings: patched(s.findings, {
        // Begins a page with the last finding of the one before.
        list: async (query: { since?: string; limit?: number } = {}) => {
          const page = await s.findings.list(query)
          if (query.since === undefined || query.limit !== 3) return page
          const all = await s.findings.list({ limit: 500 })
          const last = all.findings.find(({ cursor }) => cursor === query.since)
          return { ...page, findings: last ? [last, ...page.findings] : page.findings }
        },
      }),
    }),
    'findings.list.cursor': (s) => ({
      findings: patched(s.findings, {
        list: async (query: never) => {
          const page = await s.findings.list(query)
          return page.findings.length > 0 ? page : { ...page, next: 'moved' }
        },
      }),
    }),
    'findings.list.filter': (s) => ({
      findings: patched(s.findings, {
        list: ({ minSeverity: _, ...query }: Record<string, unknown> = {}) => s.findings.list(query as never),
      }),
    }),
    'findings.get': (s) => ({
      findings: patched(s.findings, {
        get: async (uid: string) => {
          const { findings } = await s.findings.list({ limit: 500 })
          const other = findings.find(({ json }) => !json.includes(uid))
          return typeof uid === 'string' && findings.some(({ json }) => json.includes(uid))
            ? other
            : s.findings.get(uid)
        },
      }),
    }),
    'findings.unknown': (s) => ({
      findings: patched(s.findings, {
        acknowledge: async (uid: string, note: never) =>
          s.findings.acknowledge(uid, note).catch((error) => {
            throw Object.assign(error, { message: `${error.message} (that you may see)` })
          }),
      }),
    }),
    'findings.acknowledge': (s) => ({
      findings: patched(s.findings, { acknowledge: async (uid: string) => s.findings.get(uid) }),
    }),
    'watch.list-then-live': (s) => ({
      findings: patched(s.findings, {
        watch: (q: never) =>
          watched(s, q, (records) => records.filter((r) => r.type !== 'finding' || !r.json?.includes('"k3"'))),
      }),
    }),
    'watch.resume': (s) => ({
      findings: patched(s.findings, {
        watch: ({ since: _, ...query }: Record<string, unknown>) => s.findings.watch(query as never),
      }),
    }),
    'watch.wait': (s) => ({
      findings: patched(s.findings, {
        watch: (q: never) =>
          watched(
            s,
            q,
            (records) => records,
            (options) => ({ ...options, ...(options.waitMs === 300 && { waitMs: 0 }) }),
          ),
      }),
    }),
    'run.unknown': (s) => ({ run: ({ vm: _, ...more }: Record<string, unknown> = {}) => s.run(more as never) }),
    'artifacts.unknown': (s) => ({
      artifacts: patched(s.artifacts as never, {
        read: async (q: never) =>
          s.artifacts.read(q).catch((error) => {
            if (error.code !== 'ERR_CLOUDAPP_NOT_FOUND') throw error
            return { bytes: new Uint8Array(), total: 0 }
          }),
      }),
    }),
    'artifacts.read': (s) => ({
      artifacts: patched(s.artifacts as never, {
        read: async (q: never) => {
          const part = await s.artifacts.read(q)
          part.bytes[0] = (part.bytes[0] ?? 0) ^ 1
          return part
        },
      }),
    }),
  }

  it.each(Object.entries(broken))('finds a service domain that breaks %s', async (name, breakIt) => {
    const sd = await populated()
    const results = await conform(
      async () =>
        served(sd, async (root, request) => {
          const opened = await root.open(request)
          const service = opened.service as unknown as Service
          return { ...opened, service: patched(service as never, breakIt(service) as never) as never }
        }),
      { run: true, acknowledge: true, only: name.split('.')[0] ?? '' },
    )
    expect(failures(results).map((result) => result.name)).toContain(name)
  })

  it('finds one that takes any version, any key or any pass', async () => {
    const sd = await populated()
    const opening = async (change: (request: Record<string, unknown>) => Record<string, unknown>) => {
      const connect = async () => served(sd, (root, request) => root.open(change(request as never)))
      return failures(await conform(connect, { only: 'open' })).map(({ name }) => name)
    }
    expect(await opening((request) => request)).toEqual([])
    expect(await opening(({ pass: _, ...request } = {}) => request)).toEqual(['open.pass'])
    expect(await opening(({ extra: _, ...request } = {}) => request)).toEqual(['open.arguments'])
    const high = async () =>
      served(sd, async (root, request) => {
        const opened = await root.open(request)
        return { ...opened, version: (request as { version: number }).version }
      })
    expect(failures(await conform(high, { only: 'open' })).map(({ name }) => name)).toEqual(['open.version'])
  })

  it('finds one that passes over what it should end for', async () => {
    const sd = await populated()
    const names = CHECKS.filter(({ name }) => /^(frames|session)\./.test(name))
    // These two are about what must be taken, and what no reader can pass over.
    const rest = ['frames.truncated', 'frames.cut-anywhere', 'frames.oversize', 'session.calls']
    for (const check of names.filter(({ name }) => !rest.includes(name))) {
      const subject = new Subject(async () => lax(sd))
      const { outcome, why } = await runCheck(check, subject, 150)
      expect({ name: check.name, outcome, why }).toEqual({
        name: check.name,
        outcome: 'failed',
        why: expect.stringContaining('no end'),
      })
    }
  })

  it('finds one that ends without saying why', async () => {
    const sd = await populated()
    const mute = async () => {
      const [ours, theirs] = memoryChannelPair(['admin', 'sd'])
      const real = sd.channel('admin')
      void pump(theirs, real, (bytes) => bytes)
      void pump(real, theirs, (bytes) => (Buffer.from(bytes).includes('abort') ? undefined : bytes))
      return ours
    }
    const results = await conform(mute, { only: 'frames.trailing' })
    expect(failures(results)).toMatchObject([
      { name: 'frames.trailing', why: expect.stringContaining('without saying') },
    ])
  })
})

type Open = (root: Root, request: unknown) => Promise<unknown>

/** A channel to a service domain whose `open` is another. */
function served(sd: Served, open: Open): Channel {
  const [ours, theirs] = memoryChannelPair(['admin', 'sd'])
  const state = new ClientState(sd.backend, theirs)
  const root = new Root(state)
  class Broken extends RpcTarget {
    open(request: unknown) {
      return open(root, request)
    }
  }
  const limits = { frameBytes: 64 * 1024, depth: 16, items: 4096, calls: 256, stubs: 8, running: 48 }
  const session = openSession<never>(theirs, { main: new Broken(), limits })
  session.closed.addEventListener('abort', () => state.end(), { once: true })
  return ours
}

/** An object of the interface with some of its members replaced. */
function patched(target: Record<string, unknown>, members: Record<string, unknown>): never {
  class Patched extends RpcTarget {}
  const names = [
    'describe',
    'health',
    'run',
    'findings',
    'artifacts',
    'list',
    'get',
    'acknowledge',
    'watch',
    'read',
    'next',
    'close',
  ]
  for (const name of names) {
    const given = members[name] ?? target[name]
    if (given === undefined) continue
    Object.defineProperty(
      Patched.prototype,
      name,
      typeof given === 'function'
        ? { value: (...args: unknown[]) => (members[name] ? given(...args) : given.apply(target, args)) }
        : { get: () => given },
    )
  }
  return new Patched() as never
}

function changed<T extends { findings: { json: string }[] }>(page: T, change: (json: string) => string): T {
  return { ...page, findings: page.findings.map((f) => ({ ...f, json: change(f.json) })) }
}

type Records = { type: string; json?: string }[]

async function watched(
  service: WireService,
  query: never,
  change: (records: Records) => Records,
  ask: (options: { waitMs?: number }) => { waitMs?: number } = (options) => options,
) {
  const watch = await service.findings.watch(query)
  return patched(watch as never, {
    next: async (options: { waitMs?: number } = {}) => {
      const { records } = await watch.next(ask(options))
      return { records: change(records as never) }
    },
  })
}

/** In front of the real one, drops every frame that is not as it should be. */
function lax(sd: Served): Channel {
  const [ours, theirs] = memoryChannelPair(['admin', 'sd'])
  const real = sd.channel('admin')
  let have = Buffer.alloc(0)
  void pump(theirs, real, (bytes) => {
    have = Buffer.concat([have, bytes])
    const good: Uint8Array[] = []
    while (have.length >= 4 && have.length >= 4 + have.readUInt32BE(0)) {
      const frame = new Uint8Array(have.subarray(0, 4 + have.readUInt32BE(0)))
      have = have.subarray(frame.length)
      if (fits(frame.subarray(4))) good.push(frame)
    }
    return Buffer.concat(good)
  })
  void pump(real, theirs, (bytes) => bytes)
  return ours
}

function fits(body: Uint8Array): boolean {
  try {
    const message = decodeBody(body, { ...FRAME_LIMITS, frameBytes: 64 * 1024, depth: 16, items: 4096 }) as unknown[]
    if (body.length > 64 * 1024 || !['push', 'pull', 'release', 'abort'].includes(String(message[0]))) return false
    const call = message[1] as unknown[]
    return message[0] !== 'push' || (call[0] === 'pipeline' && !/pipeline.*pipeline|export/.test(JSON.stringify(call)))
  } catch {
    return false
  }
}

async function pump(from: Channel, to: Channel, change: (bytes: Uint8Array) => Uint8Array | undefined): Promise<void> {
  try {
    for (let bytes = await from.read(); bytes !== undefined; bytes = await from.read()) {
      const out = change(bytes)
      if (out && out.length > 0) to.write(out)
    }
  } catch {
    // Closed at this side.
  }
  await to.close()
}
