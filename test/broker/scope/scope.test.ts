import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import type { BrokerConnection } from '../../../src/broker/client.js'
import type { Caveats } from '../../../src/capabilities/caveats.js'
import type { Delegation } from '../../../src/capabilities/delegation.js'
import { mintToken } from '../../../src/capabilities/mint.js'
import { type SyntheticGuest, syntheticGuest } from '../../../src/testing/index.js'
import type { GuestVm } from '../../../src/vmi/guest.js'
import { Linux } from '../../../src/vmi/linux/index.js'
import {
  CellState,
  type GuestMemory,
  PHYSICAL,
  type Space,
  virtualSpace,
  type WalkPlan,
} from '../../../src/vmi/memory.js'
import { unnamed } from '../fake-vm.js'
import { Host } from '../host.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const DENIED = { code: 'ERR_CLOUDAPP_DENIED', right: 'memory.read' }
const TASKS = [
  { pid: 100, comm: 'nginx', uid: 33, cgroup: '/system.slice/nginx.service' },
  { pid: 101, comm: 'nginx', uid: 33, cgroup: '/system.slice/nginx.service/workers' },
  { pid: 200, comm: 'postgres', uid: 70, cgroup: '/system.slice/postgres.service' },
  { pid: 300, comm: 'nginx', uid: 1000, cgroup: '/user.slice/impostor' },
]

let guest: SyntheticGuest
let host: Host
let holder: BrokerConnection
let raw: GuestMemory
/** What the guest does in the middle of an operation. */
let meanwhile: (() => void) | undefined
beforeAll(async () => {
  guest = syntheticGuest({ seed: 11, tasks: TASKS })
  raw = guest.vm().memory as GuestMemory
  host = await Host.start({ open: async (): Promise<GuestVm> => unnamed(guest.vm({ meanwhile: () => meanwhile?.() })) })
  holder = await host.connect()
})
afterAll(() => host[Symbol.asyncDispose]())

type Reader = Delegation<'memory.read'>

function redeem(caveats: Caveats): Promise<Reader> {
  const { notBefore: _, expires: __, audience: ___, ...rest } = caveats
  return holder.redeem<'memory.read'>(host.mint(rest))
}

const spaceOf = (pid: number): Space => virtualSpace(guest.task(pid).dtb, 5)
const mmOf = (pid: number) => guest.struct('mm_struct', guest.struct('task_struct', guest.task(pid).address).get('mm'))
/** A page of the process that it can write. */
const pageOf = (pid: number): bigint => mmOf(pid).get('start_stack') & ~0xfffn

async function put(space: Space, at: bigint, words: readonly bigint[]): Promise<void> {
  const bytes = new Uint8Array(BigUint64Array.from(words).buffer)
  await raw.write?.([{ space, at, bytes }])
}

describe('a capability over some processes', () => {
  it('names them with their address spaces, and reads their memory', async () => {
    const vm = await redeem({ processes: [{ name: 'nginx' }] })
    const processes = await vm.processes()
    expect(processes.map(({ pid, name }) => [pid, name])).toEqual([
      [100, 'nginx'],
      [101, 'nginx'],
      [300, 'nginx'],
    ])
    expect(processes[0]?.space).toBe(spaceOf(100))
    const at = mmOf(100).get('arg_start')
    const [line] = await vm.memory.read([{ space: spaceOf(100), at, length: 14 }])
    expect(Buffer.from(line?.bytes ?? []).toString()).toBe('/usr/bin/nginx')
  })

  it('tells by cgroup whose memory it may read: the group and those below it', async () => {
    const vm = await redeem({ processes: [{ name: 'nginx', cgroup: '/system.slice/nginx.service' }] })
    expect((await vm.processes()).map(({ pid, cgroup }) => [pid, cgroup])).toEqual([
      [100, '/system.slice/nginx.service'],
      [101, '/system.slice/nginx.service/workers'],
    ])
    const read = (pid: number) => vm.memory.read([{ space: spaceOf(pid), at: pageOf(pid), length: 8 }])
    await read(101)
    await expect(read(300)).rejects.toMatchObject(DENIED)
    const whole = await redeem({ processes: [{ cgroup: '/' }] })
    expect((await whole.processes()).length).toBeGreaterThanOrEqual(TASKS.length)
  })

  it('does not reach the kernel, other processes or physical memory by any verb', async () => {
    const vm = await redeem({ processes: [{ name: 'postgres' }] })
    const mine = spaceOf(200)
    const init = guest.symbol('init_task')
    for (const [space, at] of [
      [guest.space, init],
      [mine, init],
      [mine, 0xffff_8000_0000_0000n],
      [spaceOf(100), pageOf(100)],
      [virtualSpace(guest.task(200).dtb, 4), pageOf(200)],
      [PHYSICAL, 0x1000n],
    ] as const) {
      await expect(vm.memory.read([{ space, at, length: 8 }]), `${space} ${at}`).rejects.toMatchObject(DENIED)
      const start = at & ~0xfffn
      const range = { space, start, end: start + 0x1000n, limit: 10 }
      await expect(vm.memory.search({ ...range, patterns: [new Uint8Array([1])] })).rejects.toMatchObject(DENIED)
      await expect(vm.memory.digest(range)).rejects.toMatchObject(DENIED)
      if (space !== PHYSICAL) await expect(vm.memory.pages(range)).rejects.toMatchObject(DENIED)
    }
    // A range that begins within and ends without.
    const over = { space: mine, start: pageOf(200), end: 1n << 57n, limit: 10 }
    await expect(vm.memory.pages(over)).rejects.toMatchObject(DENIED)
    const pages = await vm.memory.pages({ ...over, end: pageOf(200) + 0x1000n })
    expect([...pages.virtual]).toEqual([pageOf(200)])
  })

  it('finds a fault where crafted pointers lead out, whatever the structure', async () => {
    const vm = await redeem({ processes: [{ name: 'postgres' }] })
    const space = spaceOf(200)
    const page = pageOf(200)
    const secret = guest.symbol('init_task') + BigInt(guest.offset('task_struct', 'comm'))
    const out = guest.symbol('init_task')
    // Each at its own place: a list, hlist, tree, xarray and array that lead to the kernel.
    await put(space, page, [out])
    await put(space, page + 0x100n, [page + 0x180n])
    await put(space, page + 0x180n, [0n, out, 0n])
    await put(space, page + 0x200n, [(out & ~3n) | 2n])
    const heads: WalkPlan[] = [
      { kind: 'list', space, head: page, node: 0, columns: [], limit: 10 },
      { kind: 'hlist', space, head: page, node: 0, columns: [], limit: 10 },
      { kind: 'hash', space, head: page, count: 1, node: 0, columns: [], limit: 10 },
      { kind: 'rbtree', space, head: page + 0x100n, node: 0, columns: [], limit: 10 },
      {
        kind: 'xarray',
        space,
        head: page + 0x200n,
        shiftOffset: 0,
        slotsOffset: 16,
        slots: 64,
        columns: [],
        limit: 10,
      },
      { kind: 'list', space, head: out, node: 0, columns: [], limit: 10 },
    ]
    for (const result of await vm.memory.walk(heads)) {
      expect(result.end).toBe('fault')
      expect(result.fault?.reason).toBe('denied')
    }
    // The same walks follow the pointers where nothing limits them.
    const free = await redeem({})
    const [followed] = await free.memory.walk(heads)
    expect(followed?.fault?.reason).not.toBe('denied')
    // An element that is the kernel's, and one whose field's path leads there: rows, but no bytes of them.
    const array: WalkPlan = {
      kind: 'array',
      space,
      head: page,
      count: 1,
      stride: 8,
      columns: [
        { path: [0], size: 8 },
        { path: [0, guest.offset('task_struct', 'comm')], size: 7 },
      ],
      limit: 10,
    }
    const pointers: WalkPlan = { ...array, pointers: true, columns: [{ path: [Number(secret - out)], size: 7 }] }
    const [fields, elements] = await vm.memory.walk([array, pointers])
    expect([...(fields?.cells ?? [])]).toEqual([CellState.Ok, CellState.Fault])
    expect(fields?.columns[1]).toEqual(new Uint8Array(7))
    expect([...(elements?.cells ?? [])]).toEqual([CellState.Fault])
    const [unscoped] = await free.memory.walk([array])
    expect(Buffer.from(unscoped?.columns[1] ?? []).toString()).toBe('swapper')
  })

  it('loses an address space when the process starts another program or ends, and finds the new one', async () => {
    const vm = await redeem({ processes: [{ name: 'nginx', cgroup: '/system.slice/nginx.service/workers' }] })
    const task = guest.struct('task_struct', guest.task(101).address)
    const before = task.get('mm')
    const old = spaceOf(101)
    const at = pageOf(101)
    await vm.memory.read([{ space: old, at, length: 8 }])
    // execve: the same task with other memory. The old page table may be anybody's now.
    task.set('mm', mmOf(300).address)
    await expect(vm.memory.read([{ space: old, at, length: 8 }])).rejects.toMatchObject(DENIED)
    const [process] = await vm.processes()
    expect(process).toMatchObject({ pid: 101, space: spaceOf(300) })
    await vm.memory.read([{ space: spaceOf(300), at: pageOf(300), length: 8 }])
    task.set('mm', 0n)
    await expect(vm.memory.read([{ space: spaceOf(300), at: pageOf(300), length: 8 }])).rejects.toMatchObject(DENIED)
    expect(await vm.processes()).toEqual([])
    task.set('mm', before)
  })

  it('gives out nothing of an operation during which the process changed', async () => {
    const vm = await redeem({ processes: [{ name: 'nginx', cgroup: '/system.slice/nginx.service/workers' }] })
    const task = guest.struct('task_struct', guest.task(101).address)
    const mm = task.get('mm')
    const space = spaceOf(101)
    const at = pageOf(101)
    await vm.memory.read([{ space, at, length: 8 }])
    // The calls of one read: whose page table it is and the cgroup's path, the read itself, and both once more. What
    // changes after the last look at the page table changes too late to matter.
    let calls = 0
    meanwhile = () => calls++
    await vm.memory.read([{ space, at, length: 8 }])
    const path = (calls - 3) / 2
    expect(path).toBeGreaterThan(0)
    for (let ends = 1; ends <= path + 3; ends++) {
      calls = 0
      meanwhile = () => {
        if (++calls === ends) task.set('mm', 0n)
      }
      await expect(vm.memory.read([{ space, at, length: 8 }]), `after ${ends} calls`).rejects.toMatchObject(DENIED)
      meanwhile = undefined
      task.set('mm', mm)
    }
  })
})

describe('a capability over kernel addresses', () => {
  it('reaches them in the kernel address space and nothing else', async () => {
    const banner = guest.symbol('linux_banner')
    const vm = await redeem({ memory: { kernel: [{ first: banner, last: banner + 63n }] } })
    const read = (space: Space, at: bigint, length: number) => vm.memory.read([{ space, at, length }])
    const [result] = await read(guest.space, banner, 13)
    expect(Buffer.from(result?.bytes ?? []).toString()).toBe('Linux version')
    await expect(read(guest.space, banner, 65)).rejects.toMatchObject(DENIED)
    await expect(read(guest.space, banner - 1n, 2)).rejects.toMatchObject(DENIED)
    // Some other page table, made up by whoever asks.
    await expect(read(guest.space + 0x1000n, banner, 8)).rejects.toMatchObject(DENIED)
    await expect(read(spaceOf(100), pageOf(100), 8)).rejects.toMatchObject(DENIED)
    await expect(read(PHYSICAL, 0n, 8)).rejects.toMatchObject(DENIED)
  })

  it('attaches with the profile the broker has, and walks as far as it reaches', async () => {
    const init = guest.symbol('init_task')
    const size = BigInt(guest.offset('task_struct', 'comm') + 16)
    const narrow = await redeem({ memory: { kernel: [{ first: init, last: init + size }] } })
    const linux = await Linux.attach(narrow)
    expect(linux.release).toBe(guest.release)
    const list = await linux.taskList()
    expect(list).toMatchObject({ end: 'fault', fault: { reason: 'denied' }, tasks: [] })
    const all = await redeem({ memory: { kernel: [{ first: 1n << 63n, last: (1n << 64n) - 1n }] } })
    const attached = await Linux.attach(all)
    const pids = (await attached.tasks()).map(({ pid }) => pid)
    expect(pids).toEqual(expect.arrayContaining([1, 2, 100, 101, 200, 300]))
  })

  it('writes only where it reaches', async () => {
    const banner = guest.symbol('linux_banner')
    const token = mintToken({
      owner: host.owner,
      vm: { uuid: host.web.uuid, bootNonce: host.web.bootNonce },
      holder: host.holder.publicKey,
      rights: ['memory.write'],
      audience: host.brokerKey.publicKey,
      expires: '10m',
      memory: { kernel: [{ first: banner, last: banner + 4n }] },
    })
    const vm = await holder.redeem<'memory.write'>(token)
    const write = (bytes: string) =>
      vm.memory.write([{ space: guest.space, at: banner, bytes: new Uint8Array(Buffer.from(bytes)) }])
    expect(await write('Linux')).toEqual([{ written: 5 }])
    await expect(write('Linux!')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_DENIED', right: 'memory.write' })
  })
})
