import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest'
import { BrokerState } from '../../src/broker/state.js'
import { type SyntheticGuest, syntheticGuest } from '../../src/testing/index.js'
import type { EventStream } from '../../src/vmi/events/source.js'
import type { GuestVm } from '../../src/vmi/guest.js'
import { Child } from './child.js'
import { unnamed } from './fake-vm.js'
import { Host } from './host.js'
import { SmallDisk } from './small-disk.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const INT3 = 0xcc

/**
 * A handle on a guest in whose RAM breakpoints are bytes, as Xen's are: there from its first subscription until the last one
 * has ended at the source. How the event agent takes its own out, native/libvmi-shim/test/test_agent.c tests.
 */
function patching(guest: SyntheticGuest): GuestVm {
  const vm = guest.vm()
  const patches = new Map<bigint, { original: number; users: number }>()
  const put = (at: bigint) => {
    const patch = patches.get(at) ?? { original: guest.bytes(at, 1)[0] as number, users: 0 }
    patch.users++
    patches.set(at, patch)
    guest.bytes(at, 1)[0] = INT3
  }
  const drop = (at: bigint) => {
    const patch = patches.get(at)
    if (patch === undefined || --patch.users > 0) return
    patches.delete(at)
    guest.bytes(at, 1)[0] = patch.original
  }
  const { events } = vm
  const subscribe: typeof events.subscribe = async (program, options) => {
    const stream = await events.subscribe(program, options)
    const { trap } = program
    if (trap.kind !== 'breakpoint') return stream
    put(trap.at)
    stream.closed.addEventListener('abort', () => drop(trap.at), { once: true })
    return stream
  }
  return Object.defineProperty(vm, 'events', { value: { support: () => events.support(), subscribe } })
}

let guest: SyntheticGuest
let host: Host
beforeAll(async () => {
  guest = syntheticGuest({ seed: 9 })
  // Only for its folder: each test has a broker of its own.
  host = await Host.start()
})
afterAll(() => host[Symbol.asyncDispose]())

describe.runIf(process.getuid?.() === 0)('breakpoints, while the disk is full', () => {
  it('are out when who has them is killed, and by revocation, which their streams end with', async () => {
    using disk = new SmallDisk(join(host.folder, 'small'))
    const small = await Host.start({ open: async () => unnamed(patching(guest)) }, join(disk.folder, 'state'))
    const owner = await small.connectOwner()
    const give = () =>
      owner.delegate({ vm: 'web-1', to: small.holder.publicKey, rights: ['events.memory'], expires: '10m' })
    const [killed, stopped] = [await give(), await give()]
    const places = ['x64_sys_call', 'do_syscall_64', 'schedule', 'linux_banner'].map((name) => guest.symbol(name))
    const [alone, shared, held, last] = places as [bigint, bigint, bigint, bigint]
    const bytes = () => places.map((at) => guest.bytes(at, 1)[0])
    const before = bytes()
    expect(before).not.toContain(INT3)
    const watch = async (token: string, at: bigint[]) => {
      const words = [small.socket, small.holder.exportPem(), token, `${guest.space}`, ...at.map(String)]
      const child = await Child.start('watch-child.ts', words)
      onTestFinished(() => child.kill())
      expect(await child.next()).toEqual({ watching: true })
      return child
    }
    // The service domain that will be killed shares a breakpoint and its token with one that lives on; a third is stopped,
    // and so has its session, but will not answer.
    const dying = await watch(killed.token, [alone, shared])
    const stuck = await watch(stopped.token, [last])
    stuck.process.kill('SIGSTOP')
    const vm = await (await small.connect()).redeem<'events.memory'>(killed.token)
    const streams: EventStream[] = []
    for (const at of [shared, held]) {
      streams.push((await vm.events.subscribe({ trap: { kind: 'breakpoint', at, space: guest.space } })) as EventStream)
    }
    const waiting = streams.map((stream) => stream[Symbol.asyncIterator]().next())
    for (const one of waiting) one.catch(() => undefined)
    expect(bytes()).toEqual([INT3, INT3, INT3, INT3])

    disk.fill()
    const full = { code: 'ERR_CLOUDAPP_AUDIT' }
    const subscribeAll = async () => {
      const trap = { kind: 'breakpoint', at: alone + 1n, space: guest.space } as const
      for (;;) await (await vm.events.subscribe({ trap })).close()
    }
    await expect(subscribeAll()).rejects.toMatchObject(full)
    // Nothing of a subscription that is refused stays.
    expect(guest.bytes(alone + 1n, 1)[0]).not.toBe(INT3)

    await dying.kill('SIGKILL')
    await vi.waitFor(() => expect(bytes()).toEqual([before[0], INT3, INT3, INT3]), { timeout: 30_000 })

    await killed.revoke()
    const revoked = { code: 'ERR_CLOUDAPP_REVOKED' }
    for (const one of waiting) await expect(one).rejects.toMatchObject(revoked)
    for (const { closed } of streams) expect(closed.reason).toMatchObject(revoked)
    // At the broker the streams end before the revocation is answered.
    expect(bytes()).toEqual([before[0], before[1], before[2], INT3])
    await expect(subscribeAll()).rejects.toMatchObject(revoked)

    await stopped.revoke()
    expect(bytes()).toEqual(before)
    await stuck.kill('SIGKILL')
    // What a broker started now, on the disk that is still full, knows.
    const state = await BrokerState.open(join(disk.folder, 'state'))
    for (const { blockId } of [killed, stopped]) {
      expect(state.revokedAt(small.owner.publicKey, blockId)).toBeGreaterThan(0)
    }
    await state.close()
    await small[Symbol.asyncDispose]()
    expect(bytes()).toEqual(before)
  })
})
