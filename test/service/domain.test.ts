import { once } from 'node:events'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { describe, expect, it, vi } from 'vitest'
import { KeyPair } from '../../src/capabilities/keys.js'
import type { Manifest } from '../../src/capabilities/manifest.js'
import { signManifest } from '../../src/capabilities/manifest-sign.js'
import { SdClient } from '../../src/service/client.js'
import type { FindingGap } from '../../src/service/client-streams.js'
import { ServiceDomain } from '../../src/service/domain.js'
import type { ServiceDomainOptions } from '../../src/service/domain-options.js'
import { serviceFailures } from '../../src/service/health.js'
import { ocsfProblems } from '../../src/service/ocsf/index.js'
import { PHYSICAL } from '../../src/vmi/index.js'
import { Host } from '../broker/host.js'
import { startChild } from './child.js'
import { collect } from './served.js'
import { later, temporaryFolder, WEB } from './support.js'

/** Waits for a condition; generous, since the machine may be busy. */
const eventually = <T>(check: () => T | Promise<T>) => vi.waitFor(check, { timeout: 30_000 })

const PUBLISHER = KeyPair.generate()
const UNSIGNED: Manifest = {
  cloudapp: 1,
  name: 'ids',
  title: 'Test IDS',
  version: '1.0.0',
  vendor: 'Acme',
  rights: [{ right: 'memory.read', reason: 'to look for hidden processes' }],
  publishes: ['findings'],
}
const MANIFEST = signManifest(UNSIGNED, PUBLISHER)

async function start(host: Host | undefined, options: Partial<ServiceDomainOptions> = {}) {
  const folder = temporaryFolder()
  const sd = await ServiceDomain.start({
    manifest: MANIFEST,
    key: host?.holder ?? KeyPair.generate(),
    broker: host?.socket ?? join(folder, 'no-broker.sock'),
    listen: join(folder, 'sd.sock'),
    store: join(folder, 'store', 'findings.db'),
    ...options,
  })
  later(() => sd.close())
  const client = await SdClient.connect(join(folder, 'sd.sock'))
  later(() => client.close())
  return { sd, client, folder }
}

async function startHost(): Promise<Host> {
  const host = await Host.start()
  later(() => host[Symbol.asyncDispose]())
  return host
}

async function delegate(host: Host) {
  const owner = await host.connectOwner()
  return owner.delegate({
    vm: 'web-1',
    to: host.holder.publicKey,
    rights: ['vm.info', 'memory.read'],
    expires: '10m',
  })
}

describe('a service domain', () => {
  it('gets a delegation, looks, raises a finding, and a client reads it; revoked, it ends', async () => {
    const host = await startHost()
    const granted = await delegate(host)
    const { sd, client, folder } = await start(host, { tokens: [granted.token] })
    const ended = vi.fn()
    sd.onDelegation(['memory.read'], async (vm) => {
      // @ts-expect-error: what is not delegated does not compile
      expect(vm.memory.write).toBeUndefined()
      for await (const tick of sd.every('1h', { until: vm.closed })) {
        const [result] = await vm.memory.read([{ space: PHYSICAL, at: 0x1000n, length: 8 }])
        tick.progress({ done: 1, total: 1 })
        await sd.findings.raise({
          id: 'odd-bytes',
          about: vm,
          title: 'Odd bytes',
          severity: 'high',
          evidence: { data: { at: 0x1000n, bytes: result?.bytes } },
        })
      }
      ended()
    })
    const seen = []
    for await (const f of client.findings.watch({ minSeverity: 'high' })) {
      seen.push(f)
      if (f.change === 'create') expect(await (await client.run({ vm: 'web-1' })).done()).toBe('finished')
      else break
    }
    expect(seen[1]?.finding).toMatchObject({
      count: 2,
      message: 'Odd bytes',
      evidences: [{ data: { at: '0x1000', bytes: '0010000004100000' } }],
      unmapped: { cloudapp: { right: 'memory.read', block: granted.blockId } },
      resources: [{ uid: host.web.uuid, name: 'web-1' }],
      metadata: { product: { name: 'Test IDS', vendor_name: 'Acme' } },
    })
    for (const { finding } of seen) expect(ocsfProblems('detection_finding', finding)).toEqual([])
    expect(await client.health()).toMatchObject({ status: 'ok', vms: [{ name: 'web-1' }] })
    // The owner, as the broker attests it, sees the findings by its key alone; any other key sees none.
    for (const [key, count] of [
      [host.owner, 1],
      [KeyPair.generate(), 0],
    ] as const) {
      const customer = await SdClient.connect(join(folder, 'sd.sock'), { key })
      expect(await collect(customer.findings.list()), key.publicKey).toHaveLength(count)
      await customer.close()
    }
    await granted.revoke()
    await eventually(() => expect(sd.delegations).toEqual([]))
    await eventually(() => expect(ended).toHaveBeenCalled())
    expect(sd.health().status).toBe('ok')
    await expect(client.run()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
  })

  it('is degraded while a handler fails, says why, tries again, and recovers', async () => {
    const host = await startHost()
    const { sd, client } = await start(host, { tokens: [(await delegate(host)).token] })
    const published: unknown[] = []
    const listener = (message: unknown) => published.push(message)
    serviceFailures.subscribe(listener)
    later(() => serviceFailures.unsubscribe(listener))
    let calls = 0
    sd.onDelegation(['memory.read'], async (vm) => {
      for await (const _ of sd.every('1h', { until: vm.closed })) if (++calls === 1) throw new Error('the list lies')
    })
    await eventually(async () => {
      expect(await client.health()).toMatchObject({
        status: 'degraded',
        reasons: [{ message: 'the list lies', vm: 'web-1' }],
      })
    })
    expect(published).toMatchObject([{ service: 'ids', error: { message: 'the list lies' }, about: { name: 'web-1' } }])
    await eventually(() => expect(calls).toBe(2))
    // The turn that works ends when the next is asked for.
    expect(await (await client.run()).done()).toBe('finished')
    expect(await client.health()).toMatchObject({ status: 'ok', reasons: [] })
  })

  it('takes tokens from its inbox and lets go of those taken away; a file that is no token is a reason', async () => {
    const host = await startHost()
    const inbox = join(temporaryFolder(), 'inbox')
    mkdirSync(inbox)
    const { sd } = await start(host, { inbox })
    writeFileSync(join(inbox, 'bad.token'), 'nonsense', { mode: 0o600 })
    writeFileSync(join(inbox, 'notes.txt'), 'not looked at')
    writeFileSync(join(inbox, 'web.token'), `${(await delegate(host)).token}\n`, { mode: 0o600 })
    await eventually(() => expect(sd.delegations.map((d) => d.identity.name)).toEqual(['web-1']))
    expect(sd.health().reasons).toMatchObject([{ code: 'ERR_CLOUDAPP_TOKEN' }])
    const [vm] = sd.delegations
    rmSync(join(inbox, 'web.token'))
    rmSync(join(inbox, 'bad.token'))
    await eventually(() => expect(vm?.closed.aborted).toBe(true))
    await eventually(() => expect(sd.health().status).toBe('ok'))
  })

  it('comes back to its delegation when the broker was restarted', async () => {
    const host = await startHost()
    const { sd } = await start(host, { tokens: [(await delegate(host)).token] })
    const given = vi.fn()
    sd.onDelegation(['memory.read'], given)
    await eventually(() => expect(given).toHaveBeenCalledTimes(1))
    await host.broker.close()
    await eventually(() => expect(sd.health().status).toBe('degraded'))
    await host.startBroker()
    await eventually(() => expect(given).toHaveBeenCalledTimes(2))
    expect(sd.health().status).toBe('ok')
  })

  it('serves its findings without any broker, and says that it has none', async () => {
    const host = await startHost()
    const { token } = await delegate(host)
    const { sd, client } = await start(undefined, { key: host.holder, tokens: [token] })
    await sd.findings.raise({ key: 'k', about: WEB, title: 't', severity: 'low' })
    for await (const f of client.findings.list()) expect(f.finding.message).toBe('t')
    await eventually(() =>
      expect(sd.health()).toMatchObject({ status: 'degraded', reasons: [{ code: 'ERR_CLOUDAPP_NOT_FOUND' }] }),
    )
  })

  it('tells its author once of what goes wrong, however often it is tried again, and whatever the listener does', async () => {
    const { token } = await delegate(await startHost())
    const attempts = vi.fn()
    serviceFailures.subscribe(attempts)
    later(() => void serviceFailures.unsubscribe(attempts))
    const told = vi.fn(() => {
      throw new Error(`The listener is broken, and never in the same way: ${performance.now()}`)
    })
    const inbox = temporaryFolder()
    const { sd } = await start(undefined, { inbox })
    sd.events.on('failure', told)
    writeFileSync(join(inbox, 'web.token'), token, { mode: 0o600 })
    await eventually(() => expect(attempts.mock.calls.length).toBeGreaterThan(4))
    expect(told.mock.calls).toMatchObject([[{ source: 'token web.token', code: 'ERR_CLOUDAPP_NOT_FOUND' }]])
    expect(sd.health().reasons.map(({ code }) => code)).toContain('unexpected')
  })

  it('refuses what it does not know', async () => {
    const base = {
      manifest: MANIFEST,
      key: KeyPair.generate(),
      listen: false,
    } as const
    for (const [wrong, code] of [
      [{ ...base, stor: 'x' }, 'ERR_CLOUDAPP_UNKNOWN_OPTION'],
      [{ ...base, retention: { age: 1 } }, 'ERR_CLOUDAPP_UNKNOWN_OPTION'],
      [{ ...base, manifest: { ...base.manifest, extra: 1 } }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
      [
        { ...base, manifest: { ...base.manifest, rights: [{ right: 'all', reason: 'x' }] } },
        'ERR_CLOUDAPP_INVALID_ARGUMENT',
      ],
      [{ ...base, manifest: '/no/such/cloudapp.json' }, 'ERR_CLOUDAPP_NOT_FOUND'],
      [{ ...base, key: '/no/such.key' }, 'ERR_CLOUDAPP_NOT_FOUND'],
      [{ ...base, manifest: UNSIGNED }, 'ERR_CLOUDAPP_PROOF'],
      [{ ...base, manifest: { ...MANIFEST, title: 'Another' } }, 'ERR_CLOUDAPP_PROOF'],
      [{ ...base, manifest: { ...MANIFEST, publisher: KeyPair.generate().publicKey } }, 'ERR_CLOUDAPP_PROOF'],
    ] as const) {
      await expect(ServiceDomain.start(wrong as never)).rejects.toMatchObject({ code })
    }
  })
})

describe('every', () => {
  it('gives the first turn at once, skips what it missed, and ends with its signal', async () => {
    const { sd } = await start(undefined)
    const stop = new AbortController()
    const numbers: number[] = []
    let missed = 0
    for await (const tick of sd.every('5ms', { until: stop.signal })) {
      numbers.push(tick.number)
      missed += tick.missed
      if (tick.number === 1) {
        const until = performance.now() + 60
        while (performance.now() < until);
      }
      if (tick.number === 5) stop.abort()
    }
    expect(numbers).toEqual([0, 1, 2, 3, 4, 5])
    expect(missed).toBeGreaterThanOrEqual(10)
  })

  it('ends when the service domain closes', async () => {
    const { sd } = await start(undefined)
    for await (const _ of sd.every('1h')) void sd.close()
    expect(() => sd.every('0s')).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' }))
    expect(() => sd.every('soon')).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' }))
  })

  it('makes an extra turn for a client, with progress, and tells its failure and its cancelling', async () => {
    const { sd, client } = await start(undefined)
    const turns: string[] = []
    const loop = (async () => {
      for await (const tick of sd.every('100h')) {
        if (!tick.requested) continue
        turns.push('asked')
        if (turns.length === 1) {
          tick.progress({ done: 1, total: 2, message: 'half' })
          await sd.findings.raise({ key: 'k', about: WEB, title: 't', severity: 'low' })
        } else if (turns.length === 2) await once(tick.signal, 'abort')
        else throw new Error('the scan broke')
      }
    })()
    loop.catch(() => undefined)
    const events = []
    for await (const event of await client.run()) events.push(event)
    expect(events).toEqual([
      { type: 'queued', vm: 'ids' },
      { type: 'started', vm: 'ids' },
      { type: 'progress', vm: 'ids', done: 1, total: 2, message: 'half' },
      { type: 'finished', vm: 'ids', changes: 1 },
      { type: 'done', outcome: 'finished' },
    ])
    const second = await client.run()
    for await (const event of second) if (event.type === 'started') second.cancel()
    await expect((await client.run()).done()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
    expect(turns).toHaveLength(3)
    await expect(loop).rejects.toThrow('the scan broke')
    await expect(client.run()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
  })
})

describe('a client whose service domain is killed and started again', () => {
  it('loses nothing that was acknowledged, and resumes its watch', async () => {
    const folder = temporaryFolder()
    const socket = join(folder, 'sd.sock')
    const run = async (round: number) => {
      const child = await startChild('sd-child.ts', folder, String(round))
      const lines = createInterface(child.stdout)
      const acknowledged: string[] = []
      lines.on('line', (line) => line !== 'ready' && acknowledged.push(line))
      await once(lines, 'line')
      return { child, acknowledged }
    }
    let sd = await run(0)
    const client = await SdClient.connect(socket)
    later(() => client.close())
    const acknowledged: string[] = []
    const seen = new Set<string>()
    const gaps: FindingGap[] = []
    let round = 0
    for await (const f of client.findings.watch({ onGap: (gap) => gaps.push(gap) })) {
      seen.add(f.finding.unmapped.cloudapp.key)
      if (round < 2 && sd.acknowledged.length >= 80) {
        sd.child.kill('SIGKILL')
        await once(sd.child, 'exit')
        acknowledged.push(...sd.acknowledged)
        sd = await run(++round)
      }
      if (round === 2 && seen.has('round-2-40')) break
    }
    const lost = acknowledged.filter((key) => !seen.has(key))
    expect(gaps).toEqual([])
    expect(lost).toEqual([])
    expect(acknowledged.length).toBeGreaterThanOrEqual(160)
  })

  it('gives up after the time it was told', async () => {
    const { sd, folder } = await start(undefined)
    const client = await SdClient.connect(join(folder, 'sd.sock'), { reconnectMs: 100 })
    later(() => client.close())
    const watching = (async () => {
      for await (const _ of client.findings.watch({ onLive: () => void sd.close() }));
    })()
    await expect(watching).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })
})
