import { chmodSync } from 'node:fs'
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { readAudit } from '../../src/broker/audit/index.js'
import { type BrokerConnection, connectBroker, connectOwner, type OwnerConnection } from '../../src/broker/client.js'
import { attenuateToken } from '../../src/capabilities/attenuate.js'
import type { Delegation } from '../../src/capabilities/delegation.js'
import { KeyPair } from '../../src/capabilities/keys.js'
import type { MintOptions } from '../../src/capabilities/mint.js'
import { newBootNonce, writeOwners } from '../../src/capabilities/owners.js'
import { tokenFromText } from '../../src/capabilities/token.js'
import { PHYSICAL } from '../../src/vmi/memory.js'
import { Child } from './child.js'
import { FakeVm } from './fake-vm.js'
import { Host } from './host.js'
import { RawHolder } from './raw-holder.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

let host: Host
let owner: OwnerConnection
let holder: BrokerConnection
beforeAll(async () => {
  host = await Host.start()
  owner = await host.connectOwner()
})
beforeEach(async () => {
  holder = await host.connect()
})
afterAll(() => host[Symbol.asyncDispose]())

type Reader = Delegation<'memory.read'>
const one = [{ space: PHYSICAL, at: 0x1000n, length: 4 }]

const mint = (change: Partial<MintOptions> = {}): Uint8Array => host.mint(change)

async function read(vm: { memory: Reader['memory'] }): Promise<number> {
  const [result] = await vm.memory.read(one)
  return Buffer.from(result?.bytes ?? []).readUInt32LE(0)
}

async function audited(action: string): Promise<{ outcome: string; code?: string; reason?: unknown; peer?: string }[]> {
  await host.broker.reload()
  const found: { outcome: string; code?: string; reason?: unknown; peer?: string }[] = []
  for await (const { entry } of readAudit(`${host.state}/audit.log`)) {
    if (entry.action !== action) continue
    const { outcome, code, peer } = entry
    found.push({ outcome, reason: entry.details?.reason, ...(code ? { code } : {}), ...(peer ? { peer } : {}) })
  }
  return found
}

describe('a holder', () => {
  it('has what it was given and nothing else', async () => {
    const { token } = await owner.delegate({
      vm: 'web-1',
      to: host.holder.publicKey,
      rights: ['vm.info', 'memory.read', 'vcpu.read'],
      expires: '10m',
    })
    const vm = await holder.redeem<'vm.info' | 'memory.read' | 'vcpu.read'>(token)
    expect(vm.identity).toEqual({ name: 'web-1', uuid: host.web.uuid, bootNonce: host.web.bootNonce })
    expect(vm.rights).toEqual(['vm.info', 'memory.read', 'vcpu.read'])
    expect(vm.memory.end).toBe(4n * 1024n * 1024n)
    expect(await read(vm)).toBe(0x1000)
    expect(await vm.vcpus.registers()).toEqual([{ index: 0, rip: 0xffff_ffff_8100_0000n, cr3: 0x1000n }])
    expect(await vm.info()).toEqual({ state: 'running', memoryBytes: 4n * 1024n * 1024n, vcpus: 1 })
    expect('write' in vm.memory).toBe(false)
    expect('pause' in vm).toBe(false)
    await expect(vm.demand('memory.write')).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_DENIED',
      right: 'memory.write',
    })
    expect(await audited('memory.write')).toContainEqual(
      expect.objectContaining({ outcome: 'refused', code: 'ERR_CLOUDAPP_DENIED' }),
    )
  })

  it('writes where it may', async () => {
    const vm = await holder.redeem<'memory.read' | 'memory.write'>(mint({ rights: ['memory.read', 'memory.write'] }))
    const bytes = new Uint8Array([9, 8, 7])
    expect(await vm.memory.write([{ space: PHYSICAL, at: 0x3000n, bytes }])).toEqual([{ written: 3 }])
    const [back] = await vm.memory.read([{ space: PHYSICAL, at: 0x3000n, length: 3 }])
    expect(back?.bytes).toEqual(bytes)
  })

  it('gets the kernel profile with any right, each part once', async () => {
    const before = host.vms['fake:web']?.headers ?? 0
    const vm = await holder.redeem(mint({ rights: ['vm.info'] }))
    const [parts] = await Promise.all([vm.kernel(), vm.kernel()])
    await vm.kernel()
    expect(parts.header).toEqual(new Uint8Array([1, 2, 3]))
    expect(Buffer.from(await parts.section('symbols')).toString()).toBe('section symbols')
    await parts.section('symbols')
    // One for the header, one for the section.
    expect((host.vms['fake:web']?.headers ?? 0) - before).toBe(2)
    await expect(parts.section('../etc/passwd')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
  })

  it('attenuates for itself and for others', async () => {
    const vm = await holder.redeem<'memory.read' | 'vm.info'>(mint({ rights: ['memory.read', 'vm.info'] }))
    const narrow = await vm.attenuate({ rights: ['vm.info'] })
    expect(narrow.rights).toEqual(['vm.info'])
    expect('memory' in narrow).toBe(false)
    const friend = KeyPair.generate()
    const token = await vm.delegate({ rights: ['memory.read'], to: friend.publicKey })
    const other = await (await host.connect(friend)).redeem<'memory.read'>(token)
    expect(await read(other)).toBe(0x1000)
    await vm.close()
    expect(narrow.closed.aborted).toBe(true)
    await expect(narrow.info()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
    await expect(vm.memory.read(one)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
    expect(await read(other)).toBe(0x1000)
  })

  it('aborts a call, and the broker stops the work', async () => {
    const vm = await holder.redeem<'memory.read'>(mint())
    const abort = new AbortController()
    const call = vm.memory.read(one, { signal: abort.signal })
    abort.abort()
    await expect(call).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_ABORTED' })
    // A job that would go on for ever, at the broker.
    const { memory } = host.vms['fake:web'] as FakeVm
    let stopped = false
    const endless = vi.spyOn(memory, 'search').mockImplementation(
      (_, options) =>
        new Promise((_resolve, reject) => {
          options?.signal?.addEventListener('abort', () => {
            stopped = true
            reject(options.signal?.reason)
          })
        }),
    )
    const long = new AbortController()
    const wanted = { space: PHYSICAL, start: 0n, end: 0x1000n, patterns: [new Uint8Array([1])], limit: 1 }
    const search = vm.memory.search(wanted, { signal: long.signal })
    search.catch(() => undefined)
    await vi.waitFor(() => expect(endless).toHaveBeenCalled(), { timeout: 10_000 })
    expect(stopped).toBe(false)
    long.abort()
    await expect(search).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_ABORTED' })
    await vi.waitFor(() => expect(stopped).toBe(true), { timeout: 10_000 })
    // What runs when the capability is taken back is stopped too, and its holder told why.
    stopped = false
    const granted = await owner.delegate({
      ...{ vm: 'web-1', to: host.holder.publicKey, rights: ['memory.read'], expires: '10m' },
    })
    const taken = (await holder.redeem<'memory.read'>(granted.token)).memory.search(wanted)
    taken.catch(() => undefined)
    await vi.waitFor(() => expect(endless).toHaveBeenCalledTimes(2), { timeout: 10_000 })
    await granted.revoke()
    expect(stopped).toBe(true)
    await expect(taken).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    endless.mockRestore()
    await expect(vm.memory.read(one, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_ABORTED',
    })
    expect(await read(vm)).toBe(0x1000)
  })

  it('works the same in one process, without a socket', async () => {
    const connection = await connectBroker({ channel: host.broker.connect(), key: host.holder })
    const vm = await connection.redeem<'memory.read'>(mint())
    expect(await read(vm)).toBe(0x1000)
    const own = await connectOwner({ channel: host.broker.connect(), key: host.owner })
    expect((await own.vms()).map(({ name }) => name)).toEqual(['web-1'])
    await own.close()
    await connection.close()
    await expect(vm.memory.read(one)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  it('learns that the VM was started anew: the token is for the boot before', async () => {
    const before = await holder.redeem<'memory.read'>(mint())
    const token = mint()
    const again = { ...host.web, bootNonce: newBootNonce() }
    await writeOwners(host.register, [again, host.db])
    await host.broker.reload()
    await expect(before.memory.read(one)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_TOKEN' })
    await expect(holder.redeem(token)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_TOKEN',
      details: expect.objectContaining({ reason: 'vm' }),
    })
    await writeOwners(host.register, [host.web, host.db])
    await host.broker.reload()
    host.vms['fake:web'] = new FakeVm(host.vms['fake:web']?.ram as Uint8Array)
    expect(await read(await holder.redeem<'memory.read'>(token))).toBe(0x1000)
  })
})

describe('limits of a token', () => {
  it('counts uses over the whole chain: siblings share what their parent had', async () => {
    const root = mint({ uses: 10 })
    const siblings = await Promise.all(
      Array.from({ length: 30 }, () => holder.redeem<'memory.read'>(attenuateToken(root, { holder: host.holder }))),
    )
    const results = await Promise.allSettled(siblings.flatMap((vm) => [vm.memory.read(one), vm.memory.read(one)]))
    expect(results.filter(({ status }) => status === 'fulfilled').length).toBe(10)
    const failed = results.find((result) => result.status === 'rejected') as PromiseRejectedResult
    expect(failed.reason).toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT', details: { limit: 'uses', most: 10 } })
  })

  it('lets 1,000 siblings, redeemed at once over many sessions, have ten uses between them, also after a restart', async () => {
    const other = await Host.start()
    const { uuid, bootNonce } = other.web
    const root = mint({
      ...{ owner: other.owner, vm: { uuid, bootNonce }, audience: other.brokerKey.publicKey, uses: 10 },
      holder: other.holder.publicKey,
    })
    const siblings = Array.from({ length: 1000 }, () => attenuateToken(root, { holder: other.holder }))
    /** Reads once through each of `tokens`; how many were answered. */
    const race = async (tokens: readonly Uint8Array[]) => {
      const sessions = await Promise.all(Array.from({ length: 5 }, () => other.connect()))
      const vms = await Promise.all(
        tokens.map((token, i) => (sessions[i % 5] as BrokerConnection).redeem<'memory.read'>(token)),
      )
      const results = await Promise.allSettled(vms.map((vm) => vm.memory.read(one)))
      for (const result of results) {
        if (result.status === 'rejected') {
          expect(result.reason).toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT', details: { limit: 'uses', most: 10 } })
        }
      }
      await Promise.all(sessions.map((session) => session.close()))
      return results.filter(({ status }) => status === 'fulfilled').length
    }
    // Four, a restart, and the thousand for what is left.
    expect(await race(siblings.slice(0, 4))).toBe(4)
    await other.broker.close()
    // The broker closed its VM with it.
    other.vms['fake:web'] = new FakeVm(new Uint8Array(1024 * 1024))
    await other.startBroker()
    expect(await race(siblings)).toBe(6)
    await other[Symbol.asyncDispose]()
  })

  it('honours no expired token again when the clock of the host was set back, also over a restart', async () => {
    const other = await Host.start()
    const { uuid, bootNonce } = other.web
    const token = mint({
      ...{ owner: other.owner, vm: { uuid, bootNonce }, audience: other.brokerKey.publicKey, expires: '300ms' },
      holder: other.holder.publicKey,
    })
    const vm = await (await other.connect()).redeem(token)
    if (!vm.closed.aborted) await new Promise((resolve) => vm.closed.addEventListener('abort', resolve))
    const { now } = Date
    const set = vi.spyOn(Date, 'now').mockImplementation(() => now() - 3_600_000)
    try {
      // An hour back, the token's time would not even have come.
      await expect((await other.connect()).redeem(token)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_EXPIRED' })
      await other.broker.close()
      await other.startBroker()
      await expect((await other.connect()).redeem(token)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_EXPIRED' })
    } finally {
      set.mockRestore()
    }
    await other[Symbol.asyncDispose]()
  })

  it('lets a VM run on when the broker has had enough of the pause, whatever the token says', async () => {
    const other = await Host.start({ maxPauseMs: 100 })
    const { uuid, bootNonce } = other.web
    const token = mint({
      ...{ owner: other.owner, vm: { uuid, bootNonce }, audience: other.brokerKey.publicKey, rights: ['vm.pause'] },
      holder: other.holder.publicKey,
    })
    const vm = await (await other.connect()).redeem<'vm.pause'>(token)
    await vm.pause()
    expect(other.vms['fake:web']?.pauses).toBe(1)
    await vi.waitFor(() => expect(other.vms['fake:web']?.pauses).toBe(0), { timeout: 10_000 })
    await other[Symbol.asyncDispose]()
  })

  it('gives out no more bytes than its budget, and never a part too much', async () => {
    const vm = await holder.redeem<'memory.read'>(mint({ outputBytes: 1000 }))
    await vm.memory.read([{ space: PHYSICAL, at: 0n, length: 500 }])
    await expect(vm.memory.read([{ space: PHYSICAL, at: 0n, length: 500 }])).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_LIMIT',
      details: { limit: 'outputBytes', most: 1000 },
    })
    await vm.memory.read([{ space: PHYSICAL, at: 0n, length: 300 }])
  })

  it('says when to come back once a rate is reached', async () => {
    const vm = await holder.redeem<'memory.read'>(mint({ operationsPerSecond: 5 }))
    const results = await Promise.allSettled(Array.from({ length: 20 }, () => vm.memory.read(one)))
    const failed = results.filter((result) => result.status === 'rejected') as PromiseRejectedResult[]
    expect(failed.length).toBeGreaterThanOrEqual(14)
    expect(failed[0]?.reason.details).toMatchObject({ limit: 'operationsPerSecond' })
    expect(failed[0]?.reason.details.retryAfterMs).toBeGreaterThan(0)
    expect(failed[0]?.reason.details.retryAfterMs).toBeLessThanOrEqual(200)
  })

  it('tells what is left of each limit, of a chain the least', async () => {
    const root = mint({ uses: 10, outputBytes: 1000, bytesPerSecond: 100_000, operationsPerSecond: 50 })
    const vm = await holder.redeem<'memory.read'>(root)
    const narrow = await vm.attenuate({ uses: 3, operationsPerSecond: 2 })
    await narrow.memory.read(one)
    expect(await vm.budget()).toMatchObject({ uses: 9, outputBytes: 1000 - 17, bytes: { most: 100_000 } })
    const left = await narrow.budget()
    expect(left).toMatchObject({ uses: 2, outputBytes: 1000 - 17, operations: { most: 2 } })
    expect(left).not.toHaveProperty('pauseMs')
    expect(left.timeMs).toBeGreaterThan(0)
    expect(left.timeMs).toBeLessThanOrEqual(600_000)
    // Looking costs nothing.
    expect((await narrow.budget()).uses).toBe(2)
    await vm.close()
    await expect(narrow.budget()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  it('says of a rate when there is something again, and there is', async () => {
    const vm = await holder.redeem<'memory.read'>(mint({ bytesPerSecond: 2000 }))
    await vm.memory.read([{ space: PHYSICAL, at: 0n, length: 2200 }])
    const error = await vm.memory.read(one).catch((reason: unknown) => reason)
    expect(error).toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT', details: { limit: 'bytesPerSecond' } })
    const { bytes } = await vm.budget()
    expect(bytes?.left).toBeLessThan(0)
    const wait = (error as { details: { retryAfterMs: number } }).details.retryAfterMs
    expect(wait).toBeGreaterThanOrEqual(bytes?.retryAfterMs ?? 0)
    await new Promise((resolve) => setTimeout(resolve, wait + 1))
    expect(await read(vm)).toBe(0x1000)
  })

  it('reaches physical ranges and nothing past them, whatever verb is tried', async () => {
    const vm = await holder.redeem<'memory.read'>(mint({ memory: { physical: [{ first: 0x1000n, last: 0x1fffn }] } }))
    expect(await read(vm)).toBe(0x1000)
    const denied = { code: 'ERR_CLOUDAPP_DENIED' }
    const at = new BigUint64Array([0x1000n, 0x1ffdn])
    await expect(vm.memory.read([{ space: PHYSICAL, at, length: 4 }])).rejects.toMatchObject(denied)
    await expect(vm.memory.read([{ space: 0x1004n, at: 0x1000n, length: 4 }])).rejects.toMatchObject(denied)
    await expect(vm.memory.digest({ space: PHYSICAL, start: 0x1000n, end: 0x3000n })).rejects.toMatchObject(denied)
    // The word at 0x1000 is a pointer out of the range: no row, and no look behind it.
    const list = { kind: 'list' as const, space: PHYSICAL, head: 0x1000n, node: 0, columns: [], limit: 1 }
    expect(await vm.memory.walk([list])).toMatchObject([{ rows: 0, end: 'fault', fault: { reason: 'denied' } }])
    await expect(vm.memory.walk([{ ...list, head: 0x2000n }])).rejects.toMatchObject(denied)
    await expect(
      vm.memory.search({ space: PHYSICAL, start: 0n, end: 0x2000n, patterns: [new Uint8Array([1])], limit: 1 }),
    ).rejects.toMatchObject(denied)
    await expect(vm.memory.pages({ space: 0x1004n, start: 0n, end: 0x2000n, limit: 1 })).rejects.toMatchObject(denied)
    const scoped = await holder.redeem<'memory.read'>(mint({ processes: [{ name: 'nginx' }] }))
    await expect(read(scoped)).rejects.toMatchObject(denied)
  })

  it('ends by itself when its time is over', async () => {
    const vm = await holder.redeem<'memory.read'>(mint({ expires: '400ms' }))
    expect(await read(vm)).toBe(0x1000)
    await new Promise((resolve) => vm.closed.addEventListener('abort', resolve))
    expect(vm.closed.reason).toMatchObject({ code: 'ERR_CLOUDAPP_EXPIRED' })
    await expect(vm.memory.read(one)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_EXPIRED' })
  })

  it('lets a paused VM run on when its budget is used, its holder closes, or is gone', async () => {
    const fake = host.vms['fake:web']
    const until = async (pauses: number) => {
      while (fake?.pauses !== pauses) await new Promise((resolve) => setTimeout(resolve, 5))
    }
    const vm = await holder.redeem<'vm.pause' | 'memory.read'>(mint({ rights: ['vm.pause', 'memory.read'] }))
    {
      await using _scope = await vm.pause()
      expect(fake?.pauses).toBe(1)
      const [result] = await vm.memory.read(one)
      expect(result?.consistent).toBe(true)
    }
    expect(fake?.pauses).toBe(0)
    const short = await holder.redeem<'vm.pause'>(mint({ rights: ['vm.pause'], pauseMsPerMinute: 50 }))
    // A timer may end a pause a little early: what is left of the budget is little, and soon nothing.
    const spend = async () => {
      for (let i = 0; i < 100; i++) {
        await short.pause()
        await until(0)
      }
    }
    await expect(spend()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT', details: { limit: 'pauseMsPerMinute' } })
    await vm.pause()
    await until(1)
    await holder.close()
    await until(0)
  })
})

describe('refused, audited, and served on', () => {
  const flip = (token: Uint8Array) => {
    const forged = token.slice()
    forged[forged.length - 5] = (forged[forged.length - 5] as number) ^ 1
    return forged
  }
  it.each<[string, () => Uint8Array, string, string]>([
    ['bytes that are no token', () => new Uint8Array([1, 2, 3]), 'ERR_CLOUDAPP_TOKEN', 'malformed'],
    ['a forged signature', () => flip(mint()), 'ERR_CLOUDAPP_TOKEN', 'signature'],
    [
      "a token by somebody who is not the VM's owner",
      () => mint({ owner: host.stranger }),
      'ERR_CLOUDAPP_TOKEN',
      'owner',
    ],
    [
      'a token for a VM that is not here',
      () => mint({ vm: { uuid: '99999999-2222-3333-4444-555555555555', bootNonce: host.web.bootNonce } }),
      'ERR_CLOUDAPP_TOKEN',
      'vm',
    ],
    [
      'a token for an earlier boot',
      () => mint({ vm: { uuid: host.web.uuid, bootNonce: newBootNonce() } }),
      'ERR_CLOUDAPP_TOKEN',
      'vm',
    ],
    ['a token whose time has not come', () => mint({ notBefore: '5m' }), 'ERR_CLOUDAPP_TOKEN', 'not-yet-valid'],
    ['a token for another transport', () => mint({ transports: ['tls'] }), 'ERR_CLOUDAPP_TOKEN', 'transport'],
    ['an expired token', () => mint({ notBefore: 1000, expires: 2000 }), 'ERR_CLOUDAPP_EXPIRED', ''],
  ])('%s', async (_, make, code, reason) => {
    const token = make()
    const probe = await RawHolder.open(host)
    await expect(probe.redeem(token)).rejects.toMatchObject({ code })
    await probe.close()
    const records = await audited('token.redeem')
    expect(records.at(-1)).toMatchObject({ outcome: 'refused', code, ...(reason === '' ? {} : { reason }) })
    expect(records.at(-1)?.peer).toBe(`unix uid=${process.getuid?.()} gid=${process.getgid?.()} pid=${process.pid}`)
    expect(await read(await holder.redeem<'memory.read'>(mint()))).toBe(0x1000)
  })

  it('a token for another broker, on the client already', async () => {
    const token = mint({ audience: KeyPair.generate().publicKey })
    await expect(holder.redeem(token)).rejects.toMatchObject({ code: expect.stringMatching(/TOKEN|PROOF/) })
    const probe = await RawHolder.open(host)
    await expect(probe.redeem(token)).rejects.toMatchObject({ details: { reason: 'audience' } })
    await probe.close()
  })

  it('a stolen token: without the key it is of no use', async () => {
    const thief = await RawHolder.open(host, KeyPair.generate())
    await expect(thief.redeem(mint())).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROOF' })
    await thief.close()
  })

  it('a replayed proof: on the same connection, and on another', async () => {
    const token = mint()
    const first = await RawHolder.open(host)
    const proof = await first.prove(token)
    await first.present(token, proof)
    await expect(first.present(token, proof)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROOF' })
    const second = await RawHolder.open(host)
    await expect(second.present(token, proof)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROOF' })
    await Promise.all([first.close(), second.close()])
    expect((await audited('token.redeem')).at(-1)).toMatchObject({ outcome: 'refused', code: 'ERR_CLOUDAPP_PROOF' })
  })

  it('a relayed proof: made by another process for the challenge of this one', async () => {
    const relay = await RawHolder.open(host)
    const token = mint()
    // The victim would sign with its own pid, which is not the one the broker sees.
    const proof = await relay.prove(token, { transport: 'unix', clientPid: 1, clientUid: process.getuid?.() ?? 0 })
    await expect(relay.present(token, proof)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROOF' })
    await relay.close()
  })

  it('rights that are not held, asked for past the client', async () => {
    const raw = await RawHolder.open(host)
    const stub = await raw.redeem(mint())
    await expect(raw.session.settle(stub.write(new Uint8Array(4), 0))).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_DENIED',
      right: 'memory.write',
      vm: 'web-1',
      details: { held: ['memory.read'] },
    })
    await expect(raw.session.settle(stub.registers())).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_DENIED' })
    await expect(raw.session.settle(stub.pause())).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_DENIED' })
    await raw.close()
    expect((await audited('memory.write')).at(-1)).toMatchObject({ outcome: 'refused' })
  })

  it('memory messages past the limits of the seam, however they are written', async () => {
    const raw = await RawHolder.open(host)
    const stub = await raw.redeem(mint())
    const header = (count: number, length: number, addresses: number) => {
      const bytes = Buffer.alloc(20)
      bytes.writeUInt32LE(count, 0)
      bytes.writeUInt32LE(length, 12)
      bytes.writeUInt32LE(addresses, 16)
      return new Uint8Array(bytes)
    }
    const fails = (message: unknown) => raw.session.settle(stub.read(message as Uint8Array, 0))
    await expect(fails(header(0xffff_ffff, 1, 1))).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT' })
    await expect(fails(header(1, 0xffff_ffff, 1))).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT' })
    await expect(fails(header(1, 1, 0xffff_ffff))).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT' })
    await expect(fails(header(1, 0x10_0000, 0x1_0000))).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT' })
    await expect(fails(header(1, 1, 5))).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROTOCOL' })
    await expect(fails('text')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROTOCOL' })
    await expect(fails(undefined)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROTOCOL' })
    await raw.close()
  })

  it('a session that guesses: it is closed after some tries', async () => {
    const raw = await RawHolder.open(host)
    const tries = Array.from({ length: 40 }, () => raw.redeem(new Uint8Array([1])).catch(() => undefined))
    await Promise.all(tries)
    if (!raw.session.closed.aborted) {
      await new Promise((resolve) => raw.session.closed.addEventListener('abort', resolve))
    }
    expect(await read(await holder.redeem<'memory.read'>(mint()))).toBe(0x1000)
  })

  it('an owner without the key, or without a VM', async () => {
    await expect(host.connectOwner(KeyPair.generate())).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_DENIED' })
    expect((await audited('owner.open')).at(-1)).toMatchObject({ outcome: 'refused' })
  })
})

describe('other users', () => {
  it('redeem from a process and uid of their own, and the log says which', async () => {
    const asRoot = process.getuid?.() === 0
    const token = await owner.delegate({
      vm: 'web-1',
      to: host.holder.publicKey,
      rights: ['memory.read'],
      expires: '10m',
    })
    chmodSync(host.folder, 0o755)
    const ids = asRoot ? { uid: 23_456, gid: 23_456 } : {}
    const child = await Child.start('holder-child.ts', [host.socket, host.holder.exportPem(), token.token], ids)
    const said = await child.next()
    expect(said).toEqual({ uid: ids.uid ?? process.getuid?.(), pid: child.process.pid, bytes: '00100000' })
    const peers = (await audited('token.redeem')).map(({ peer }) => peer)
    expect(peers).toContain(`unix uid=${said?.uid} gid=${ids.gid ?? process.getgid?.()} pid=${child.process.pid}`)
    await child.kill()
  })
})

describe('an owner', () => {
  it('sees its own VMs and what is used on them', async () => {
    const granted = await owner.delegate({
      vm: 'web-1',
      to: host.holder.publicKey,
      rights: ['vm.info'],
      expires: '10m',
    })
    await holder.redeem(granted.token)
    const lease = (await owner.leases()).find(({ blocks }) => blocks.includes(granted.blockId))
    expect(lease).toMatchObject({ vm: 'web-1', holder: host.holder.publicKey, rights: ['vm.info'] })
    const stranger = await host.connectOwner(host.stranger)
    expect((await stranger.vms()).map(({ name }) => name)).toEqual(['db-1'])
    expect(await stranger.leases()).toEqual([])
    await expect(
      stranger.delegate({ vm: 'web-1', to: host.holder.publicKey, rights: ['vm.info'], expires: '1m' }),
    ).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
  })

  it("can not revoke another owner's capability", async () => {
    const granted = await owner.delegate({
      vm: 'web-1',
      to: host.holder.publicKey,
      rights: ['memory.read'],
      expires: '10m',
    })
    const vm = await holder.redeem<'memory.read'>(granted.token)
    const stranger = await host.connectOwner(host.stranger)
    expect(await stranger.revoke(granted.blockId)).toEqual({ ended: 0, direct: 0, seen: false, destroyed: [] })
    expect(await read(vm)).toBe(0x1000)
    expect(await owner.revoke(granted.blockId)).toEqual({ ended: 1, direct: 0, seen: true, destroyed: [] })
    await expect(vm.memory.read(one)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    expect(await owner.revoke(granted.blockId)).toMatchObject({ ended: 0, seen: true })
  })

  it('revokes with 20 sessions busy: nothing works from then on, and each holder is told', async () => {
    const granted = await owner.delegate({
      vm: 'web-1',
      to: host.holder.publicKey,
      rights: ['memory.read'],
      expires: '10m',
    })
    const derived = attenuateToken(tokenFromText(granted.token), { holder: host.holder, bytesPerSecond: 1_000_000_000 })
    const sessions = await Promise.all(Array.from({ length: 20 }, () => host.connect()))
    const vms = await Promise.all(sessions.map((session) => session.redeem<'memory.read'>(derived)))
    const bystander = await holder.redeem<'memory.read'>(mint())
    let revoked = false
    let late = 0
    let done = 0
    const busy = vms.map(async (vm) => {
      for (;;) {
        try {
          const begun = revoked
          await vm.memory.read(one)
          done++
          if (begun) late++
        } catch (error) {
          return error
        }
      }
    })
    while (done < 200) await new Promise((resolve) => setImmediate(resolve))
    await granted.revoke()
    revoked = true
    for (const reason of await Promise.all(busy)) expect(reason).toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    expect(late).toBe(0)
    for (const vm of vms) {
      if (!vm.closed.aborted) await new Promise((resolve) => vm.closed.addEventListener('abort', resolve))
      expect(vm.closed.reason).toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    }
    await expect(holder.redeem(granted.token)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    expect(await read(bystander)).toBe(0x1000)
    await Promise.all(sessions.map((session) => session.close()))
  })

  it('gets heads of the audit log that are signed by the broker', async () => {
    const head = await owner.auditHead()
    expect(head.broker).toBe(host.brokerKey.publicKey)
    expect(head.seq).toBeGreaterThan(0)
  })
})
