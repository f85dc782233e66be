import { join } from 'node:path'
import { beforeEach, describe, expect, it } from 'vitest'
import type { AccessHook } from '../../src/service/access.js'
import { SdClient } from '../../src/service/client.js'
import type { ClientFinding, FindingGap } from '../../src/service/client-streams.js'
import { Findings } from '../../src/service/findings.js'
import { HealthState } from '../../src/service/health.js'
import { ClientState } from '../../src/service/interface/asker.js'
import { INTERFACE_LIMITS } from '../../src/service/interface/protocol.js'
import { InterfaceServer } from '../../src/service/interface/server.js'
import { Root } from '../../src/service/interface/session.js'
import { ocsfProblems } from '../../src/service/ocsf/index.js'
import type { FindingStore } from '../../src/service/store/store.js'
import { memoryChannelPair, openSession } from '../../src/transport/index.js'
import { listenUnix } from '../../src/transport/unix.js'
import { DB, KEEP, later, openStore, temporaryFolder, WEB } from './support.js'

// Who the peer is comes from the transport; over a memory channel it is the name of the other half.
const tenants: Record<string, 'all' | string[]> = { web: [WEB.uuid], db: [DB.uuid], nobody: [], admin: 'all' }

let store: FindingStore
let findings: Findings
let health: HealthState
let server: InterfaceServer
let access: AccessHook

beforeEach(() => {
  store = openStore()
  findings = new Findings(store, KEEP, () => {})
  health = new HealthState('ids')
  access = (peer) => (peer.kind === 'memory' ? (tenants[peer.name] ?? []) : 'all')
  server = new InterfaceServer(backend())
  later(async () => {
    await server.close()
    await findings.shutdown()
  })
})

function backend() {
  return {
    store,
    findings,
    health,
    access: (peer: Parameters<AccessHook>[0]) => access(peer),
    describe: () => ({
      service: { name: 'ids', title: 'IDS', version: '1.0.0', vendor: 'Acme' },
      interface: { version: 1, ocsf: '1.8.0' },
      rights: [],
      publishes: ['findings'],
    }),
    vms: () => [WEB, DB],
    run: () => undefined,
  }
}

async function connect(name: string): Promise<SdClient> {
  const client = await SdClient.connect(async () => {
    const [ours, theirs] = memoryChannelPair([name, 'sd'])
    server.serve(theirs)
    return ours
  })
  later(() => client.close())
  return client
}

const raise = (key: string, about = WEB, severity: 'low' | 'high' = 'high') =>
  findings.raise({ key, about, title: key, severity })

const collect = async <T>(items: AsyncIterable<T>) => {
  const all: T[] = []
  for await (const item of items) all.push(item)
  return all
}

const keyOf = (f: ClientFinding) => f.finding.unmapped.cloudapp.key

describe('the standard interface', () => {
  it('describes itself, lists, gets and acknowledges', async () => {
    const client = await connect('web')
    const { uid } = await raise('a')
    await raise('b', WEB, 'low')
    await raise('c', DB)
    expect(await client.describe()).toMatchObject({ service: { name: 'ids' }, interface: { version: 1 } })
    const listed = await collect(client.findings.list())
    expect(listed.map(keyOf)).toEqual(['a', 'b'])
    for (const f of listed) expect(ocsfProblems('detection_finding', f.finding)).toEqual([])
    expect((await collect(client.findings.list({ minSeverity: 'medium', vm: 'web-1' }))).map(keyOf)).toEqual(['a'])
    expect((await client.findings.get(uid)).finding.finding_info.uid).toBe(uid)
    const done = await client.findings.acknowledge(uid, { comment: 'seen' })
    expect(done.finding).toMatchObject({ status: 'In Progress', comment: 'seen', activity_name: 'Update' })
    expect((await collect(client.findings.list({ status: 'acknowledged' }))).map(keyOf)).toEqual(['a'])
  })

  it('pages through more findings than one answer holds, each once', async () => {
    await Promise.all(Array.from({ length: 700 }, (_, i) => raise(`k${i}`)))
    const listed = await collect((await connect('web')).findings.list())
    expect(new Set(listed.map(keyOf)).size).toBe(700)
    expect(await collect((await connect('web')).findings.list({ limit: 3 }))).toHaveLength(3)
  })

  it('shows another tenant nothing, and not that there is anything', async () => {
    const [mine, other] = [await connect('db'), await connect('nobody')]
    const empty = async (client: SdClient) => ({
      list: await collect(client.findings.list()),
      health: await client.health(),
      get: await client.findings.get('no-such-uid').catch((e: Error) => e.message.replace('no-such-uid', 'UID')),
      run: await client.run({ vm: 'web-1' }).catch((e: Error) => e.message),
      raw: await rawList('nobody'),
    })
    const before = await empty(other)
    const { uid } = await raise('secret')
    health.fail('handler', new Error('web-1 lies'), WEB)
    health.fail('token', new Error('token of web-1'), 'unknown')
    for (let i = 0; i < 50; i++) await raise('secret')
    expect(await empty(other)).toEqual(before)
    expect(await collect(mine.findings.list())).toEqual([])
    expect(await mine.health()).toMatchObject({ status: 'ok', since: 0, reasons: [], vms: [{ name: 'db-1' }] })
    for (const call of [mine.findings.get(uid), mine.findings.acknowledge(uid)]) {
      await expect(call).rejects.toMatchObject({
        code: 'ERR_CLOUDAPP_NOT_FOUND',
        message: expect.not.stringMatching(/secret|web/),
      })
    }
    expect((await (await connect('web')).health()).reasons).toMatchObject([{ message: 'web-1 lies', vm: 'web-1' }])
    expect((await (await connect('admin')).health()).reasons).toHaveLength(2)
  })

  it('gives cursors that stand still while only others have findings', async () => {
    const { uid } = await raise('mine', DB)
    const first = await rawList('db')
    await Promise.all(Array.from({ length: 20 }, (_, i) => raise(`theirs-${i}`, WEB)))
    const second = await rawList('db', first.next)
    expect(second).toEqual({ findings: [], next: first.next, more: false })
    await findings.raise({ key: 'mine', about: DB, title: 'again', severity: 'high' })
    const third = await rawList('db', first.next)
    expect(third.findings).toHaveLength(1)
    expect(third.findings[0]?.json).toContain(uid)
    // Opaque: nothing of the number of changes between them can be read off.
    expect(third.next).toMatch(/^[A-Za-z0-9_-]{22}$/)
  })

  it('ends what a peer may see as soon as the hook says so', async () => {
    const client = await connect('web')
    await raise('a')
    const seen: string[] = []
    const stop = new AbortController()
    const watching = (async () => {
      for await (const f of client.findings.watch({ signal: stop.signal })) {
        seen.push(keyOf(f))
        if (keyOf(f) === 'b') {
          access = () => []
          await raise('c')
          access = () => [WEB.uuid]
          await raise('d')
        }
        if (keyOf(f) === 'd') stop.abort()
      }
    })()
    await raise('b')
    await watching
    expect(seen).toEqual(['a', 'b', 'd'])
    access = () => {
      throw new Error('the register can not be read')
    }
    expect(await collect(client.findings.list())).toEqual([])
  })

  it('lists, then watches, without a finding lost or doubled in between', async () => {
    await Promise.all(Array.from({ length: 150 }, (_, i) => raise(`old-${i}`)))
    const client = await connect('web')
    const seen: string[] = []
    let live = 0
    let made = 0
    const onLive = () => {
      live++
      while (made < 150) void raise(`new-${made++}`)
    }
    for await (const f of client.findings.watch({ onLive })) {
      seen.push(keyOf(f))
      if (made < 50) void raise(`new-${made++}`)
      if (seen.length === 300) break
    }
    expect(new Set(seen).size).toBe(300)
    expect(live).toBe(1)
  })

  it('tells a watcher that fell behind exactly how much it missed, and goes on', async () => {
    const client = await connect('web')
    const gaps: FindingGap[] = []
    const over = 777
    const total = INTERFACE_LIMITS.queue + over
    const seen: string[] = []
    for await (const f of client.findings.watch({
      onGap: (gap) => gaps.push(gap),
      onLive: () => void raise('first'),
    })) {
      seen.push(keyOf(f))
      // Nothing is fetched while this runs: the client is stalled.
      if (keyOf(f) === 'first') await Promise.all(Array.from({ length: total }, (_, i) => raise(`k${i}`)))
      if (keyOf(f) === `k${total - 1}`) break
    }
    expect(gaps).toEqual([{ count: over, exact: true, reason: 'slow' }])
    expect(seen.slice(1)).toEqual(Array.from({ length: INTERFACE_LIMITS.queue }, (_, i) => `k${i + over}`))
  })

  it('does not hold up other watchers while one is stalled', async () => {
    const stalled = await connect('web')
    const iterator = stalled.findings.watch()[Symbol.asyncIterator]()
    const first = iterator.next()
    await raise('begin')
    await first
    const others = await Promise.all(Array.from({ length: 20 }, () => connect('web')))
    const reading = others.map(async (client) => {
      for await (const f of client.findings.watch({ minSeverity: 'high' })) if (keyOf(f) === 'end') return true
      return false
    })
    for (let i = 0; i < 5; i++)
      await Promise.all(Array.from({ length: 300 }, (_, j) => raise(`k${i}-${j}`, WEB, 'low')))
    await raise('end')
    expect(await Promise.all(reading)).toEqual(others.map(() => true))
    await iterator.return?.()
  })

  it('states what retention removed since the cursor', async () => {
    const client = await connect('web')
    const made = []
    for (const key of ['a', 'b', 'c', 'd']) made.push(await raise(key, key === 'b' ? DB : WEB))
    const since = (await collect((await connect('admin')).findings.list({ limit: 1 })))[0]?.cursor as string
    store.retain({ maxAgeMs: 1e9, maxCount: 1, maxTombstones: 100, batch: 100 })
    const gaps: FindingGap[] = []
    const onGap = (gap: FindingGap) => gaps.push(gap)
    expect((await collect(client.findings.list({ since, onGap }))).map(keyOf)).toEqual(['d'])
    for await (const f of client.findings.watch({ since, onGap })) if (keyOf(f) === 'd') break
    // a was given already, b is another tenant's: only c is missing.
    expect(gaps).toEqual([1, 1].map((count) => ({ count, exact: true, reason: 'retention' })))
  })

  it('refuses wrong arguments and bounds what one session holds', async () => {
    const [ours, theirs] = memoryChannelPair(['web', 'sd'])
    server.serve(theirs)
    const session = openSession<Root>(ours)
    const remote = session.remote as never as { open(x: unknown): Promise<{ service: never }> }
    for (const wrong of [undefined, {}, { version: 0 }, { version: '1' }, { version: 1, extra: true }]) {
      await expect(session.settle(remote.open(wrong))).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    }
    const { version, service } = (await session.settle(remote.open({ version: 99 }))) as never as {
      version: number
      service: { findings: Record<string, (...x: unknown[]) => Promise<unknown>>; run(x: unknown): Promise<unknown> }
    }
    expect(version).toBe(1)
    const calls: [string, unknown[]][] = [
      ['list', [{ limit: 100_000 }]],
      ['list', [{ since: 'x' }]],
      ['list', [{ minSeverity: 'huge' }]],
      ['list', [{ nonsense: 1 }]],
      ['get', [{ $ne: 1 }]],
      ['get', ['x'.repeat(1000)]],
      ['acknowledge', ['x', { comment: 'y'.repeat(5000) }]],
      ['watch', ['all']],
    ]
    for (const [method, args] of calls) {
      await expect(
        session.settle((service.findings[method] as never as (...x: unknown[]) => Promise<unknown>)(...args)),
        method,
      ).rejects.toMatchObject({
        code: 'ERR_CLOUDAPP_INVALID_ARGUMENT',
      })
    }
    for (let i = 0; i < INTERFACE_LIMITS.watches; i++)
      await session.settle(service.findings.watch?.({}) as Promise<unknown>)
    await expect(session.settle(service.findings.watch?.({}) as Promise<unknown>)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_LIMIT',
    })
    await session.close()
    // What the session held is gone with it.
    const next = await connect('web')
    for await (const _ of next.findings.watch({ onLive: () => void raise('x') })) break
  })

  it('frees a watch when its iteration ends, so that one client can watch again and again', async () => {
    const client = await connect('web')
    await raise('a')
    for (let i = 0; i < 3 * INTERFACE_LIMITS.watches; i++) {
      for await (const f of client.findings.watch()) if (keyOf(f) === 'a') break
    }
    const stop = new AbortController()
    setImmediate(() => stop.abort())
    for await (const _ of client.findings.watch({ signal: stop.signal, minSeverity: 'fatal' }));
    const waiting = (async () => {
      for await (const _ of client.findings.watch({ minSeverity: 'fatal', onLive: () => void client.close() }));
    })()
    await expect(waiting).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  it('knows the unix user at the other end, and nothing the peer claims', async () => {
    const path = join(temporaryFolder(), 'sd.sock')
    const peers: unknown[] = []
    access = (peer) => {
      peers.push(peer)
      return 'all'
    }
    const listener = await listenUnix({ path, onChannel: (channel) => server.serve(channel) })
    later(() => listener.close())
    await raise('a')
    const client = await SdClient.connect(`unix:${path}`, { name: 'uid 0' })
    later(() => client.close())
    expect((await collect(client.findings.list())).map(keyOf)).toEqual(['a'])
    expect(peers[0]).toMatchObject({ kind: 'unix', uid: process.getuid?.(), pid: process.pid })
  })

  it('is not believed by a client when it sends what is no finding', async () => {
    const bad = { ...backend(), store: { ...store, list: () => [] } as never }
    const forged = { cursor: 'c', change: 'create', json: '{"class_uid":2004}' }
    class Liar extends Root {
      override async open() {
        return {
          version: 1,
          service: { findings: { get: () => forged, list: () => ({ findings: [forged], more: true }) } },
        } as never
      }
    }
    const client = await SdClient.connect(async () => {
      const [ours, theirs] = memoryChannelPair(['web', 'sd'])
      openSession(theirs, { main: new Liar(new ClientState(bad, theirs)) })
      return ours
    })
    later(() => client.close())
    await expect(client.findings.get('x')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROTOCOL' })
    await expect(collect(client.findings.list())).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROTOCOL' })
    await expect(client.describe()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROTOCOL' })
  })
})

/** One page as it is on the wire. */
async function rawList(name: string, since?: string) {
  const [ours, theirs] = memoryChannelPair([name, 'sd'])
  server.serve(theirs)
  const session = openSession<Root>(ours)
  const opened = (await session.settle(session.remote.open({ version: 1 }))) as never as {
    service: {
      findings: { list(query: object): Promise<{ findings: { json: string }[]; next?: string; more: boolean }> }
    }
  }
  const page = await session.settle(opened.service.findings.list(since === undefined ? {} : { since }))
  const copy = structuredClone({ ...page })
  await session.close()
  return copy
}
