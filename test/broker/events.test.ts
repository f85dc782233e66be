import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { readAudit } from '../../src/broker/audit/index.js'
import type { BrokerConnection, OwnerConnection } from '../../src/broker/client.js'
import { attenuateToken } from '../../src/capabilities/attenuate.js'
import type { Caveats } from '../../src/capabilities/caveats.js'
import type { Delegation } from '../../src/capabilities/delegation.js'
import { mintToken } from '../../src/capabilities/mint.js'
import type { Right } from '../../src/capabilities/rights.js'
import { type SyntheticGuest, syntheticGuest } from '../../src/testing/index.js'
import type { EventProgram } from '../../src/vmi/events/program.js'
import type { EventStream } from '../../src/vmi/events/source.js'
import { virtualSpace } from '../../src/vmi/memory.js'
import { EVENT_CASES, type EventRig } from '../conformance/events.js'
import { unnamed } from './fake-vm.js'
import { Host } from './host.js'
import { RawHolder } from './raw-holder.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

type Watcher = Delegation<'events.register' | 'events.memory' | 'memory.read' | 'vcpu.read'>
const ALL: readonly Right[] = ['memory.read', 'vcpu.read', 'events.register', 'events.memory']
const cr3 = { kind: 'register', register: 'cr3' } as const
const DENIED = { code: 'ERR_CLOUDAPP_DENIED' }

let guest: SyntheticGuest
let host: Host
let holder: BrokerConnection
let owner: OwnerConnection
beforeAll(async () => {
  guest = syntheticGuest({ seed: 5 })
  host = await Host.start({ open: async () => unnamed(guest.vm()) })
  holder = await host.connect()
  owner = await host.connectOwner()
})
afterAll(() => host[Symbol.asyncDispose]())

function mint(rights: readonly Right[], caveats: Caveats = {}): Uint8Array {
  const { notBefore: _, expires: __, audience: ___, ...rest } = caveats
  return mintToken({
    owner: host.owner,
    vm: { uuid: host.web.uuid, bootNonce: host.web.bootNonce },
    holder: host.holder.publicKey,
    rights,
    audience: host.brokerKey.publicKey,
    expires: '10m',
    ...rest,
  })
}

const redeem = (caveats: Caveats = {}, rights = ALL) => holder.redeem(mint(rights, caveats)) as Promise<Watcher>

async function next(stream: unknown) {
  const { value } = await (stream as EventStream)[Symbol.asyncIterator]().next()
  if (value === undefined) throw new Error('the stream has ended')
  return value
}

describe('events through a broker', () => {
  describe('as a source of events', () => {
    for (const { name, run } of EVENT_CASES) {
      it(name, async () => {
        const vm = await redeem()
        const trap = { kind: 'cpuid' } as const
        const fired = new Map<unknown, EventProgram['trap']>()
        let serial = 0
        const rig: EventRig = {
          source: {
            support: () => vm.events.support(),
            subscribe: async (program, options) => {
              if ((program as Partial<EventProgram>).trap !== trap)
                return vm.events.subscribe(program as never, options)
              const own = { kind: 'msr', msr: serial++ } as const
              const stream = await vm.events.subscribe({ ...program, trap: own }, options)
              fired.set(stream, own)
              return stream
            },
          },
          trap,
          exact: true,
          fire: async (stream, count) => {
            const own = fired.get(stream) ?? trap
            for (let i = 0; i < count; i++) guest.raise({ trap: own, registers: { rax: BigInt(i) } })
          },
        }
        await run(rig)
        await vm.close()
      })
    }
  })

  it('carry captures of every kind over the wire', async () => {
    const vm = await redeem()
    const at = guest.symbol('x64_sys_call')
    const { address } = guest.task(1)
    const trap = { kind: 'breakpoint', at, space: guest.space } as const
    await using stream = await vm.events.subscribe({
      trap,
      captures: {
        comm: { string: { register: 'rdi', path: [guest.offset('task_struct', 'comm')] }, bytes: 15 },
        rdi: { register: 'rdi' },
        nowhere: { memory: { register: 'rdi', path: [0, 0] }, bytes: 24 },
        four: { memory: { register: 'rdi' }, bytes: 4 },
      },
    })
    for (let i = 0; i < 3; i++) guest.raise({ trap, registers: { rdi: address }, vcpu: i })
    const batch = await next(stream)
    expect(batch.count).toBe(3)
    expect([...batch.columns.vcpu]).toEqual([0, 1, 2])
    expect([...((batch.columns as unknown as { rdi: BigUint64Array }).rdi ?? [])]).toEqual([address, address, address])
    const bytes = batch as unknown as {
      text(name: string, row: number): string
      bytes(name: string, row: number): Uint8Array
    }
    for (let row = 0; row < 3; row++) {
      expect(bytes.text('comm', row)).toBe('systemd')
      expect(bytes.bytes('four', row)).toEqual(new Uint8Array(guest.bytes(address, 4)))
    }
  })

  it('end at once when the capability is revoked, and the guest is as it was', async () => {
    const vm = await redeem()
    const stream = await vm.events.subscribe({ trap: cr3 })
    const waiting = next(stream)
    const granted = await owner.delegate({
      vm: 'web-1',
      to: host.holder.publicKey,
      rights: ['events.register'],
      expires: '10m',
    })
    const other = await holder.redeem<'events.register'>(granted.token)
    const cut = await other.events.subscribe({ trap: cr3 })
    const told = expect(next(cut)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    await granted.revoke()
    await told
    expect(cut.closed.reason).toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    // Others are not concerned.
    guest.raise({ trap: cr3 })
    expect((await waiting).count).toBe(1)
    await vm.close()
    await expect(next(stream)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  it('need a right for the trap and for each thing looked at', async () => {
    const breakpoint = { kind: 'breakpoint', at: guest.symbol('x64_sys_call'), space: guest.space } as const
    const memory = { string: { register: 'rdi' }, bytes: 8 } as const
    const cases: [readonly Right[], EventProgram, Right | undefined][] = [
      [['events.register'], { trap: cr3, predicate: ['==', { register: 'cr3' }, 0n] }, undefined],
      [['events.register'], { trap: cr3, predicate: ['==', { register: 'rax' }, 0n] }, 'vcpu.read'],
      [['events.register', 'vcpu.read'], { trap: cr3, captures: { memory } }, 'memory.read'],
      [['events.register'], { trap: cr3, predicate: ['load', 0n, 8] }, 'memory.read'],
      [['events.register'], { trap: breakpoint }, 'events.memory'],
      [['events.memory'], { trap: cr3 }, 'events.register'],
      [['events.memory', 'memory.read'], { trap: breakpoint, captures: { memory } }, undefined],
    ]
    for (const [rights, program, missing] of cases) {
      const vm = await redeem({}, rights)
      const asked = vm.events.subscribe(program as never)
      if (missing === undefined) await (await asked).close()
      else await expect(asked).rejects.toMatchObject({ ...DENIED, right: missing })
      await vm.close()
    }
    expect('events' in (await redeem({}, ['memory.read']))).toBe(false)
  })

  it('refuse whatever a limited capability can not be checked against', async () => {
    const at = guest.symbol('x64_sys_call')
    const breakpoint = { kind: 'breakpoint', at, space: guest.space } as const
    const inside = await redeem({ memory: { kernel: [{ first: at, last: at + 15n }] } })
    await (await inside.events.subscribe({ trap: breakpoint })).close()
    await (await inside.events.subscribe({ trap: cr3 })).close()
    // At another address, or the same one in somebody else's address space.
    for (const trap of [
      { ...breakpoint, at: at + 16n },
      { ...breakpoint, space: virtualSpace(guest.task(1).dtb, 4) },
    ]) {
      await expect(inside.events.subscribe({ trap })).rejects.toMatchObject({ ...DENIED, right: 'events.memory' })
    }
    const capture = { a: { memory: { register: 'rdi' }, bytes: 8 } } as const
    await expect(inside.events.subscribe({ trap: cr3, captures: capture })).rejects.toMatchObject(DENIED)
    const processes = await redeem({ processes: [{ name: 'init' }] })
    await expect(processes.events.subscribe({ trap: cr3 })).rejects.toMatchObject(DENIED)
  })

  it('are refused of every kind, as is all that tells of system calls, while the capability names some of them', async () => {
    const at = guest.symbol('x64_sys_call')
    const programs: EventProgram[] = [
      { trap: { kind: 'breakpoint', at, space: guest.space }, captures: { number: { register: 'rsi' } } },
      { trap: { kind: 'breakpoint', at, space: guest.space }, predicate: ['==', { register: 'rsi' }, 1n] },
      { trap: cr3 },
      { trap: { kind: 'msr', msr: 0xc000_0082 } },
      ...(['cpuid', 'descriptor', 'guest-request'] as const).map((kind) => ({ trap: { kind } })),
    ]
    const rights = [...ALL, 'events.syscall', 'memory.write', 'vm.info', 'vm.pause'] as const
    // A number that was not named came through the first of them before it was refused.
    for (const syscalls of [[1], [1, 59], []]) {
      const vm = await redeem({ syscalls }, rights)
      for (const program of programs) {
        const right = program.trap.kind === 'breakpoint' ? 'events.memory' : 'events.register'
        const refused = { ...DENIED, right, message: expect.stringContaining('some system calls of web-1') }
        await expect(vm.events.subscribe(program as never)).rejects.toMatchObject(refused)
      }
      const writer = vm as unknown as Delegation<'memory.write' | 'vm.pause' | 'vm.info'>
      const bytes = new Uint8Array(1)
      const write = writer.memory.write([{ space: guest.space, at, bytes }])
      await expect(write).rejects.toMatchObject({ ...DENIED, right: 'memory.write' })
      // What shows a state is as it was.
      expect(await vm.memory.read([{ space: guest.space, at, length: 8 }])).toHaveLength(1)
      expect((await vm.vcpus.registers()).length).toBeGreaterThan(0)
      expect(await writer.info()).toMatchObject({ state: 'running' })
      await (await writer.pause()).close()
      expect((await vm.kernel()).header.length).toBeGreaterThan(0)
      await vm.close()
    }
    // An owner's limit holds however far the token was passed on.
    const limited = attenuateToken(mint(ALL), { holder: host.holder, to: host.holder.publicKey, syscalls: [1] })
    const last = attenuateToken(limited, { holder: host.holder, to: host.holder.publicKey, rights: ['events.memory'] })
    const vm = (await holder.redeem(last)) as unknown as Watcher
    await expect(vm.events.subscribe(programs[0] as never)).rejects.toMatchObject(DENIED)
    await expect(vm.events.support()).rejects.toMatchObject(DENIED)
    await expect(vm.kernel()).rejects.toMatchObject(DENIED)
  })

  it('are debited: batches wait for the rate, and end with the output budget', async () => {
    const slow = await redeem({ operationsPerSecond: 2 })
    await using stream = await slow.events.subscribe({ trap: cr3 })
    const began = performance.now()
    for (let i = 0; i < 3; i++) {
      guest.raise({ trap: cr3 })
      await next(stream)
    }
    // Two operations at once: the subscription and a batch. Two more take a second.
    expect(performance.now() - began).toBeGreaterThan(700)

    const small = await redeem({ outputBytes: 200 })
    const short = await small.events.subscribe({ trap: cr3 })
    const outcomes: string[] = []
    for (let i = 0; i < 5 && outcomes.length === 0; i++) {
      guest.raise({ trap: cr3 })
      await next(short).catch((error: { code: string }) => outcomes.push(error.code))
    }
    expect(outcomes).toEqual(['ERR_CLOUDAPP_LIMIT'])
    expect(short.closed.aborted).toBe(true)
  })

  it('are on the log: each subscription with its trap and its end, batches counted', async () => {
    const vm = await redeem()
    const trap = { kind: 'msr', msr: 0xc000_0082 } as const
    const stream = await vm.events.subscribe({ trap, captures: { value: { field: 'newValue' } } })
    guest.raise({ trap, fields: { newValue: 1n } })
    await next(stream)
    await stream.close()
    await vm.close()
    await host.broker.reload()
    const found = new Map<string, { [name: string]: unknown }[]>()
    for await (const { entry } of readAudit(`${host.state}/audit.log`)) {
      if (entry.details?.trap !== 'msr' && entry.action !== 'events.batch') continue
      found.set(entry.action, [...(found.get(entry.action) ?? []), { ...entry.details, right: entry.right }])
    }
    const mine = { trap: 'msr', msr: 0xc000_0082, captures: 'value', memory: false, right: 'events.register' }
    expect(found.get('events.subscribe')).toContainEqual(mine)
    expect(found.get('events.end')).toContainEqual({ trap: 'msr', matched: 1, dropped: 0, right: 'events.register' })
    expect(found.get('events.batch')?.length).toBeGreaterThan(0)
  })

  it('are bounded for a hostile holder', async () => {
    const raw = await RawHolder.open(host)
    const stub = (await raw.redeem(mint(ALL))) as unknown as {
      subscribe(program: unknown, buffer?: unknown): Promise<{ next(): Promise<unknown>; close(): Promise<void> }>
    }
    const code = (asked: Promise<unknown>) =>
      raw.session.settle(asked).then(String, (error: { code: string }) => error.code)
    let nested: unknown = ['not', 1n]
    for (let i = 0; i < 12; i++) nested = ['not', nested]
    for (const program of [null, 5, {}, { trap: cr3, predicate: nested, x: 1 }, { trap: { kind: 'breakpoint' } }]) {
      expect(await code(stub.subscribe(program))).toMatch(/^ERR_CLOUDAPP_(INVALID_ARGUMENT|UNKNOWN_OPTION)$/)
    }
    expect(await code(stub.subscribe({ trap: cr3 }, 1e12))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
    const open = []
    for (let i = 0; i < 32; i++) open.push(await raw.session.settle(stub.subscribe({ trap: cr3 })))
    expect(await code(stub.subscribe({ trap: cr3 }))).toBe('ERR_CLOUDAPP_LIMIT')
    // One question at a time, and a stub that is dropped ends its subscription.
    const [first] = open
    const waiting = code(first?.next() as Promise<unknown>)
    expect(await code(first?.next() as Promise<unknown>)).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
    await raw.session.settle(first?.close() as Promise<void>)
    expect(await waiting).toBe('null')
    await raw.session.settle(stub.subscribe({ trap: cr3 }))
    await raw.close()
  })
})
