import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { KeyPair, signManifest } from '../../src/capabilities/index.js'
import { ServiceDomain } from '../../src/service/index.js'
import { syntheticGuest, TestBroker, testDelegation } from '../../src/testing/index.js'
import { Linux } from '../../src/vmi/linux/index.js'

describe('testDelegation', () => {
  it('has the parts its rights give, and no others', async () => {
    const { delegation } = testDelegation(syntheticGuest(), ['memory.read', 'vm.info'])
    expect(delegation.rights).toEqual(['vm.info', 'memory.read'])
    expect(Object.keys(delegation)).not.toEqual(expect.arrayContaining(['vcpus']))
    expect('write' in delegation.memory).toBe(false)
    expect(await delegation.info()).toEqual({ state: 'running', memoryBytes: 32n << 20n, vcpus: 2 })
    const linux = await Linux.attach(delegation)
    expect((await linux.tasks()).length).toBeGreaterThan(10)
  })

  it('refuses what is not held, and keeps the attempt', async () => {
    const { delegation, denied } = testDelegation(syntheticGuest(), ['memory.read'])
    await expect(delegation.demand('memory.write')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_DENIED' })
    expect(denied).toEqual(['memory.write'])
  })

  it('ends as the customer or time ends it', async () => {
    const guest = syntheticGuest()
    const revoked = testDelegation(guest, ['memory.read'])
    const linux = await Linux.attach(revoked.delegation)
    revoked.revoke()
    await expect(linux.tasks()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    const expired = testDelegation(guest, ['vcpu.read'])
    const { vcpus } = expired.delegation
    expired.expire()
    await expect(vcpus.registers()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_EXPIRED' })
  })

  it('narrows and never widens', async () => {
    const { delegation } = testDelegation(syntheticGuest(), ['memory.read', 'vcpu.read'])
    const inner = await delegation.attenuate({ rights: ['vcpu.read'] })
    expect('memory' in inner).toBe(false)
    expect(await inner.vcpus.registers()).toHaveLength(2)
    const rights = ['memory.write'] as unknown as ['vcpu.read']
    await expect(delegation.attenuate({ rights })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_TOKEN' })
  })
})

describe('TestBroker', () => {
  let folder = ''
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'cloudapp-testing-'))
  })
  afterAll(() => rm(folder, { recursive: true }))

  it('serves a service domain in the same process', async () => {
    const guest = syntheticGuest({ tasks: [{ pid: 42, comm: 'miner' }] })
    const key = KeyPair.generate()
    const broker = new TestBroker()
    const token = broker.delegate(guest, key.publicKey, ['memory.read'])
    await using sd = await ServiceDomain.start({
      manifest: signManifest(
        {
          cloudapp: 1,
          name: 'ids',
          title: 'IDS',
          vendor: 'Example',
          version: '1.0.0',
          rights: [{ right: 'memory.read', reason: 'to look' }],
          publishes: [],
        },
        KeyPair.generate(),
      ),
      key,
      broker: () => broker.connect(),
      listen: false,
      store: join(folder, 'findings.db'),
      tokens: [token],
    })
    const pids: number[] = []
    const ended = new Promise((resolve) => {
      sd.onDelegation(['memory.read'], async (vm) => {
        vm.closed.addEventListener('abort', () => resolve(vm.closed.reason))
        const linux = await Linux.attach(vm)
        pids.push(...(await linux.tasks()).map(({ pid }) => pid))
        await vm.demand('memory.write').catch(() => undefined)
        broker.revoke(token)
      })
    })
    expect(await ended).toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    expect(pids).toEqual([1, 2, 42])
    expect(broker.denied).toEqual(['memory.write'])
    const source = await broker.connect()
    await expect(source.redeem(token)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    await expect(new TestBroker().connect().then((other) => other.redeem(token))).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_TOKEN',
    })
  })
})
