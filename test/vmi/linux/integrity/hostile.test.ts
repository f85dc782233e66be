import { describe, expect, it } from 'vitest'
import { type SyntheticGuest, syntheticGuest } from '../../../../src/testing/index.js'
import { integrity } from '../../../../src/vmi/linux/integrity/integrity.js'
import { Linux } from '../../../../src/vmi/linux/linux.js'
import type { GuestMemory } from '../../../../src/vmi/memory.js'

const WILD = 0x0123_4567_89ab_cdefn

const put = (guest: SyntheticGuest, at: bigint, value: bigint) =>
  guest.bytes(at, 8).set(new Uint8Array(new BigUint64Array([value]).buffer))
const get = (guest: SyntheticGuest, at: bigint) => new BigUint64Array(guest.bytes(at, 8).slice().buffer)[0] as bigint

/** Counts what the memory gives. */
const counted = (memory: GuestMemory) => {
  const count = { rows: 0, searches: 0 }
  const { walk, search } = memory
  memory.walk = async (...request) => {
    const results = await walk.apply(memory, request)
    for (const { rows } of results) count.rows += rows
    return results
  }
  memory.search = (...request) => {
    count.searches++
    return search.apply(memory, request)
  }
  return count
}

/** Attaches while the guest is sound, lets it lie, and inspects it; what stands still is not waited for. */
const inspect = async (guest: SyntheticGuest, lie: () => void = () => {}) => {
  const vm = guest.vm({ running: false })
  const linux = await Linux.attach(vm)
  lie()
  const count = counted(linux.memory)
  // What is broken in a paused guest is not tried again.
  await using _ = await vm.pause?.()
  return { ...(await integrity(linux, vm.vcpus === undefined ? {} : { vcpus: vm.vcpus })), count }
}

const busy = () => syntheticGuest({ seed: 31, functions: 200, busy: true })

describe('a book the guest broke is never silently passed over', { timeout: 60_000 }, () => {
  const books: [string, string, (guest: SyntheticGuest) => void][] = [
    ['the task list (a cycle)', 'tasks', (guest) => guest.lies.cyclicList('tasks')],
    ['the task list (too long)', 'tasks', (guest) => guest.lies.longList('tasks', 66_000)],
    ['the task list (wild)', 'tasks', (guest) => guest.lies.wildPointer('tasks', WILD, 3)],
    ['the module list', 'modules', (guest) => guest.lies.cyclicList('modules')],
    [
      'the pid IDR',
      'tasks',
      (guest) =>
        put(
          guest,
          guest.symbol('init_pid_ns') + BigInt(guest.offset('pid_namespace', 'idr.idr_rt.xa_head')),
          (WILD & ~3n) | 2n,
        ),
    ],
    ['the cgroups', 'tasks', (guest) => put(guest, guest.symbol('css_set_table'), WILD & ~1n)],
    [
      'the module kobjects',
      'modules',
      (guest) => put(guest, get(guest, guest.symbol('module_kset')) + BigInt(guest.offset('kset', 'list')), WILD),
    ],
    ['the module kset', 'modules', (guest) => put(guest, guest.symbol('module_kset'), WILD)],
    ['the ftrace users', 'ftrace', (guest) => put(guest, guest.symbol('ftrace_ops_list'), WILD)],
    ['the kprobes', 'kprobes', (guest) => put(guest, guest.symbol('kprobe_table'), WILD & ~1n)],
    ['the ftrace trampolines', 'modules', (guest) => put(guest, guest.symbol('ftrace_ops_trampoline_list'), WILD)],
    ['the BPF programs', 'modules', (guest) => put(guest, guest.symbol('bpf_kallsyms'), WILD)],
    ['the kernel page tables', 'modules', (guest) => guest.lies.selfPageTables()],
  ]
  it.each(books)('%s', async (_, check, lie) => {
    const guest = busy()
    const { hits, checks } = await inspect(guest, () => lie(guest))
    expect(hits.filter(({ kind }) => kind === 'broken-list')).toMatchObject([
      { severity: 'medium', evidence: { data: { check } } },
    ])
    expect(checks.find(({ name }) => name === check)).toMatchObject({ done: false, reason: expect.any(String) })
  })

  it('one that is broken does not hide what another shows', async () => {
    const guest = busy()
    guest.addTask({ pid: 4242, comm: 'evil' })
    guest.hideTask(4242, { from: ['pids'] })
    const { hits } = await inspect(guest, () => guest.lies.wildPointer('modules'))
    expect(hits.map(({ kind }) => kind)).toEqual(expect.arrayContaining(['hidden-process', 'broken-list']))
  })

  it('a broken task list does not make all processes behind it hidden ones', async () => {
    const guest = busy()
    const { hits } = await inspect(guest, () => guest.lies.wildPointer('tasks', WILD, 3))
    expect(hits.map(({ kind }) => kind)).toEqual(['broken-list'])
  })
})

describe('a guest can not exhaust who looks at it', { timeout: 120_000 }, () => {
  it('pointers to hidden code all over module memory', async () => {
    const guest = busy()
    const module = guest.addModule({ name: 'evil', symbols: ['evil_hook'] })
    const bait = guest.addModule({ name: 'bait', size: 1 << 16 })
    guest.hideModule('evil')
    const { hits } = await inspect(guest, () => {
      const base = module.symbols.get('evil_hook') as bigint
      const text = base & ~0xfffn
      for (let i = 0; i < 2000; i++) put(guest, bait.text.start + BigInt(8 * i), text)
    })
    expect(hits.map(({ kind }) => kind)).toEqual(expect.arrayContaining(['hidden-module']))
  })

  it('thousands of stray pages of code', async () => {
    const guest = syntheticGuest({ seed: 31, functions: 200, memory: 64 << 20 })
    for (let i = 0; i < 1100; i++) guest.injectCode(1)
    const { hits, checks, count } = await inspect(guest)
    expect(hits.length).toBeGreaterThan(100)
    expect(hits.length).toBeLessThan(2000)
    // 4 in each look.
    expect(count.searches).toBeLessThanOrEqual(16 * 4)
    expect(checks.find(({ name }) => name === 'modules')).toMatchObject({ done: false })
  })

  it('cgroups that all share one endless list of tasks', async () => {
    const guest = busy()
    const nodes = 20_000
    const first = guest.addModule({ name: 'chain', size: nodes * 16 }).text.start
    const sets = guest.addModule({ name: 'sets', size: 1 << 16 }).text.start
    const [hlist, tasks] = [BigInt(guest.offset('css_set', 'hlist')), BigInt(guest.offset('css_set', 'tasks'))]
    const { hits, count } = await inspect(guest, () => {
      for (let i = 0; i < nodes; i++) put(guest, first + BigInt(16 * i), first + BigInt(16 * ((i + 1) % nodes)))
      for (let i = 0; i < 120; i++) {
        const set = sets + BigInt(512 * i)
        put(guest, set + hlist, i === 119 ? 0n : set + 512n + hlist)
        put(guest, set + tasks, first)
      }
      put(guest, guest.symbol('css_set_table'), sets + hlist)
    })
    expect(hits.some(({ kind }) => kind === 'broken-list')).toBe(true)
    expect(count.rows).toBeLessThan(4 * 600_000)
  })
})
