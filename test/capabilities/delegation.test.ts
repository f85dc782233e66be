import { describe, expect, test, vi } from 'vitest'
import {
  type DelegationPorts,
  type Grant,
  inspectToken,
  makeDelegation,
  type Right,
  revokedPort,
} from '../../src/capabilities/index.js'
import { CloudAppError } from '../../src/errors.js'
import { mint } from './rig.js'

const identity = { name: 'web-1', uuid: '3f2b8c1e-0d5a-4c57-9f6e-8a1b2c3d4e5f', bootNonce: '00'.repeat(16) }
const read = { bytes: new Uint8Array(8), faults: [], consistent: false }

/** Ports that give fixed answers and count calls: the far end, as far as a handle is concerned. */
function ports(more: Partial<DelegationPorts> = {}): DelegationPorts {
  return {
    identity,
    kernel: async () => ({ header: new Uint8Array(1), section: async () => new Uint8Array() }),
    memory: {
      end: 0x1000n,
      read: async (requests) => requests.map(() => read),
      walk: async () => [],
      pages: async () => Promise.reject(new Error('not asked for')),
      search: async () => ({ matches: [], end: 'complete', next: 0n, consistent: false }),
      digest: async () => ({ pages: 0, digests: new Uint8Array(), present: new Uint8Array(), consistent: false }),
      write: async (requests) => requests.map(({ bytes }) => ({ written: bytes.length })),
      sync: { read: (requests) => requests.map(() => read), walk: () => [] },
    },
    vcpus: { registers: async () => [{ index: 0 }] },
    pause: async () => ({ close: async () => undefined, [Symbol.asyncDispose]: async () => undefined }),
    info: async () => ({ state: 'running', memoryBytes: 1n, vcpus: 1 }),
    ...more,
  }
}

function grant(...rights: Right[]): Grant {
  return { ...inspectToken(mint()).grant, rights }
}

const revoked = new CloudAppError('ERR_CLOUDAPP_REVOKED', 'the capability was revoked')
const request = [{ space: 0n, at: 0n, length: 8 }]

describe('a delegation shows what is granted', () => {
  test.each<[Right, string[]]>([
    ['vm.info', ['info']],
    ['vm.pause', ['pause']],
    ['vcpu.read', ['vcpus']],
    ['memory.read', ['memory']],
    ['memory.write', ['memory']],
    ['disk.observe', []],
  ])('%s', (right, parts) => {
    const { delegation } = makeDelegation<Right>(grant(right), ports())
    expect(['info', 'pause', 'vcpus', 'memory'].filter((part) => part in delegation)).toEqual(parts)
    expect(delegation.rights).toEqual([right])
    expect(delegation.has(right)).toBe(true)
    expect(delegation.has('network.filter')).toBe(false)
  })

  test('and of the memory the same', async () => {
    const reader = makeDelegation<'memory.read'>(grant('memory.read'), ports()).delegation
    expect(Object.keys(reader.memory)).toEqual(['end', 'read', 'walk', 'pages', 'search', 'digest', 'sync'])
    expect(await reader.memory.read(request)).toHaveLength(1)
    expect(reader.memory.sync?.read(request)).toHaveLength(1)
    const writer = makeDelegation<'memory.write'>(grant('memory.write'), ports()).delegation
    expect(Object.keys(writer.memory)).toEqual(['write'])
    expect(await writer.memory.write([{ space: 0n, at: 0n, bytes: new Uint8Array(3) }])).toEqual([{ written: 3 }])
  })

  test('and can not be given more by whoever holds it', () => {
    const { delegation } = makeDelegation<'memory.read'>(grant('memory.read'), ports())
    expect(() => Object.assign(delegation, { pause: () => undefined })).toThrow(TypeError)
    expect(() => Object.assign(delegation.memory, { write: () => undefined })).toThrow(TypeError)
    expect(() => (delegation.rights as Right[]).push('vm.pause')).toThrow(TypeError)
  })

  test('a demand for more is denied with what is missing and what is held, and is told', async () => {
    const denied = vi.fn(async () => undefined)
    const { delegation } = makeDelegation<'memory.read'>(grant('memory.read'), ports({ denied }))
    expect(await delegation.demand('memory.read')).toBe(delegation)
    await expect(delegation.demand('memory.write')).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_DENIED',
      right: 'memory.write',
      vm: 'web-1',
      details: { held: ['memory.read'] },
    })
    expect(denied).toHaveBeenCalledWith('memory.write')
  })
})

describe('a delegation that has ended', () => {
  test('throws the reason wherever it is used, also through parts kept from before', async () => {
    const { delegation, end } = makeDelegation<'memory.read' | 'vcpu.read' | 'vm.pause' | 'vm.info'>(
      grant('memory.read', 'vcpu.read', 'vm.pause', 'vm.info'),
      ports({ attenuate: async () => ({ grant: grant('vm.info'), ports: ports() }) }),
    )
    const { memory, vcpus, pause, info, kernel } = delegation
    end(revoked)
    end(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'too late to be the reason'))
    expect(delegation.closed.aborted).toBe(true)
    expect(delegation.closed.reason).toBe(revoked)
    const uses: (() => unknown)[] = [
      () => memory.read(request),
      () => memory.walk([]),
      () => memory.digest({ space: 0n, start: 0n, end: 0n }),
      () => vcpus.registers(),
      () => pause(),
      () => info(),
      () => kernel(),
      () => delegation.attenuate({}),
      () => delegation.demand('memory.read'),
      async () => memory.sync?.read(request),
    ]
    for (const use of uses) await expect(use()).rejects.toBe(revoked)
    await delegation.close()
  })

  test('closes once, and tells the far end', async () => {
    const close = vi.fn(async () => undefined)
    const { delegation } = makeDelegation<'memory.read'>(grant('memory.read'), ports({ close }))
    {
      await using held = delegation
      await held.memory.read(request)
    }
    await delegation.close()
    expect(close).toHaveBeenCalledTimes(1)
    await expect(delegation.memory.read(request)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  test('takes what was attenuated from it along', async () => {
    const attenuate = async () => ({ grant: grant('vm.info'), ports: ports() })
    const parent = makeDelegation<'vm.info' | 'memory.read'>(grant('vm.info', 'memory.read'), ports({ attenuate }))
    const first = await parent.delegation.attenuate({ rights: ['vm.info'] })
    const second = await parent.delegation.attenuate({ rights: ['vm.info'] })
    expect('memory' in first).toBe(false)
    await first.close()
    expect(parent.delegation.closed.aborted).toBe(false)
    expect((await second.info()).state).toBe('running')
    parent.end(revoked)
    await expect(second.info()).rejects.toBe(revoked)
    await expect(first.info()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  test('does not bring forth a live child if it ends while one is made', async () => {
    const children: DelegationPorts[] = []
    const handle = makeDelegation<'vm.info'>(
      grant('vm.info'),
      ports({
        attenuate: async () => {
          handle.end(revoked)
          children.push(ports())
          return { grant: grant('vm.info'), ports: children[0] as DelegationPorts }
        },
      }),
    )
    await expect(handle.delegation.attenuate({})).rejects.toBe(revoked)
    expect(children).toHaveLength(1)
  })
})

test('what a handle can not do is said, and a misspelled wish refused', async () => {
  const { delegation } = makeDelegation<'vm.info'>(grant('vm.info'), ports())
  await expect(delegation.attenuate({})).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_UNSUPPORTED' })
  await expect(delegation.attenuate({ expire: 1 } as never)).rejects.toMatchObject({
    code: 'ERR_CLOUDAPP_UNKNOWN_OPTION',
  })
})

test('a revoked port throws its reason and can still be awaited', async () => {
  const port = revokedPort<{ read(): void }>(revoked)
  expect(() => port.read()).toThrow(revoked)
  expect(await Promise.resolve(port)).toBe(port)
})
