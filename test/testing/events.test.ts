import { describe, expect, it } from 'vitest'
import { syntheticGuest, testDelegation } from '../../src/testing/index.js'
import type { EventProgram } from '../../src/vmi/events/program.js'
import { EVENT_CASES, type EventRig } from '../conformance/events.js'

describe('the events of a synthetic guest', () => {
  describe('as a source of events', () => {
    for (const { name, run } of EVENT_CASES) {
      it(name, async () => {
        const guest = syntheticGuest()
        await using vm = guest.vm()
        const trap = { kind: 'cpuid' } as const
        const fired = new Map<unknown, EventProgram['trap']>()
        // Of several streams on one trap each is told of all events: here each has a trap of its own.
        let serial = 0
        const rig: EventRig = {
          source: {
            support: () => vm.events.support(),
            subscribe: async (program, options) => {
              if ((program as Partial<EventProgram>).trap !== trap) return vm.events.subscribe(program, options)
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
      })
    }
  })

  it('captures the guest as it is at the event', async () => {
    const guest = syntheticGuest({ tasks: [{ pid: 42, comm: 'miner' }] })
    await using vm = guest.vm()
    const at = guest.symbol('x64_sys_call')
    const { address } = guest.task(42)
    const stream = await vm.events.subscribe({
      trap: { kind: 'breakpoint', at, space: guest.space },
      predicate: ['==', ['load', ['+', { register: 'rdi' }, BigInt(guest.offset('task_struct', 'pid'))], 4], 42n],
      captures: {
        comm: { string: { register: 'rdi', path: [guest.offset('task_struct', 'comm')] }, bytes: 16 },
        nr: { register: 'rsi' },
      },
    })
    const trap = { kind: 'breakpoint', at, space: guest.space } as const
    guest.raise({ trap, registers: { rdi: guest.task(1).address, rsi: 1n } })
    guest.raise({ trap, registers: { rdi: address, rsi: 2n }, vcpu: 1 })
    const { value } = await stream[Symbol.asyncIterator]().next()
    expect(value?.count).toBe(1)
    expect(value?.text('comm', 0)).toBe('miner')
    expect([...(value?.columns.nr ?? [])]).toEqual([2n])
    expect([...(value?.columns.vcpu ?? [])]).toEqual([1])
    expect(value?.columns.rip[0]).toBe(at)
    expect(() => value?.bytes('comm', 1)).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' }))
  })

  it('end with their delegation, and need the rights for what they look at', async () => {
    const guest = syntheticGuest()
    const { delegation, revoke, denied } = testDelegation(guest, ['events.register'])
    const trap = { kind: 'register', register: 'cr3' } as const
    const denies = { code: 'ERR_CLOUDAPP_DENIED' }
    await expect(delegation.events.subscribe({ trap, captures: { a: { register: 'rax' } } })).rejects.toMatchObject(
      denies,
    )
    await expect(
      delegation.events.subscribe({ trap, captures: { a: { memory: { register: 'rax' }, bytes: 8 } } }),
    ).rejects.toMatchObject(denies)
    const breakpoint = { kind: 'breakpoint', at: 0n, space: 0n } as const
    // @ts-expect-error events.memory is not held
    await expect(delegation.events.subscribe({ trap: breakpoint })).rejects.toMatchObject(denies)
    expect(denied).toEqual(['vcpu.read', 'memory.read', 'events.memory'])

    const stream = await delegation.events.subscribe({ trap, captures: { next: { field: 'newValue' } } })
    guest.raise({ trap, fields: { newValue: 5n } })
    const iterator = stream[Symbol.asyncIterator]()
    expect((await iterator.next()).value?.columns.next[0]).toBe(5n)
    const waiting = iterator.next()
    guest.raise({ trap })
    guest.raise({ trap })
    await waiting
    revoke()
    // What had come before is not given out any more either.
    await expect(iterator.next()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    expect((await iterator.next()).done).toBe(true)
    expect(stream.closed.reason).toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    await expect(delegation.events.subscribe({ trap })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
  })
})
