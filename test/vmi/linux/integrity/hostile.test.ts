import { describe, expect, it } from 'vitest'
import type { SyntheticGuest } from '../../../../src/testing/index.js'
import { busy, get, inspect, put, WILD } from './hostile.js'

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
