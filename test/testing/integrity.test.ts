import { describe, expect, it } from 'vitest'
import { type PatchOptions, type SyntheticGuest, syntheticGuest } from '../../src/testing/index.js'
import { Linux } from '../../src/vmi/linux/index.js'
import { integrity } from '../../src/vmi/linux/integrity/integrity.js'

const look = async (guest: SyntheticGuest) => {
  const vm = guest.vm()
  const linux = await Linux.attach(vm)
  return integrity(linux, vm.vcpus === undefined ? {} : { vcpus: vm.vcpus })
}

/** All values of a finding's evidence, however deep. */
const values = (evidence: unknown): unknown[] =>
  typeof evidence === 'object' && evidence !== null ? Object.values(evidence).flatMap(values) : [evidence]

/** A guest with a hidden module in it; where its hook would be. */
const infected = (options = {}) => {
  const guest = syntheticGuest({ seed: 21, ...options })
  const module = guest.addModule({ name: 'evil', symbols: ['evil_hook'] })
  guest.hideModule('evil')
  return { guest, hook: module.symbols.get('evil_hook') as bigint }
}

describe('integrity of a synthetic guest', { timeout: 30_000 }, () => {
  it.each(['5.10.0-test', '6.1.0-test', '6.16.0-test'])(
    'finds nothing in a sound busy guest of %s',
    async (release) => {
      const { hits, checks } = await look(syntheticGuest({ release, busy: true, seed: 11 }))
      expect(hits).toEqual([])
      expect(checks.filter(({ done }) => !done)).toEqual([])
    },
  )

  it.each(['5.10.0-test', '7.1.0-test'])('finds what hides in %s', async (release) => {
    const { guest } = infected({ release })
    const hidden = [
      { pid: 4242, comm: 'from-list', threads: [{ pid: 4243 }], from: ['list'] },
      { pid: 4244, comm: 'from-pids', state: 'queued-rt', from: ['pids'] },
      { pid: 4245, comm: 'from-both', state: 'queued', from: ['list', 'pids'] },
    ] as const
    for (const { from, ...task } of hidden) {
      guest.addTask(task)
      guest.hideTask(task.pid, { from })
    }
    const { hits } = await look(guest)
    const found = (kind: string) => hits.filter((hit) => hit.kind === kind).flatMap(({ evidence }) => values(evidence))
    expect(found('hidden-process')).toEqual(
      expect.arrayContaining([4242, 'from-list', 4244, 'from-pids', 4245, 'from-both']),
    )
    expect(found('hidden-module')).toContain('evil')
    expect(new Set(hits.map(({ kind }) => kind))).toEqual(new Set(['hidden-process', 'hidden-module']))
  })

  it('finds every way a system call, a gate and the entry are diverted', async () => {
    const { guest, hook } = infected()
    const calls: Record<string, NonNullable<PatchOptions['by']>> = {
      read: 'jump',
      write: 'call',
      open: 'mov',
      close: 'table',
      kill: 'ftrace',
      getdents64: 'kprobe',
      ptrace: 'int3',
      bpf: 'dispatcher',
    }
    const at = new Map(Object.entries(calls).map(([name, by]) => [by, guest.patchSyscall(name, hook, { by })]))
    guest.patchInterrupt(14, hook)
    guest.patchEntry(hook, 1)
    const stray = guest.injectCode(8192)
    const { hits } = await look(guest)
    const evidence = hits.flatMap((hit) => values(hit.evidence))
    for (const [by, address] of at) expect([by, evidence.includes(address)]).toEqual([by, true])
    expect(evidence).toContain(stray)
    const kinds = hits.map(({ kind }) => kind)
    expect(kinds).toEqual(expect.arrayContaining(['diverted-syscall', 'diverted-interrupt', 'diverted-entry']))
    expect(kinds.filter((kind) => kind === 'diverted-interrupt')).toHaveLength(1)
  })

  it('is not misled by a guest that changes under it', async () => {
    const guest = syntheticGuest()
    let next = 5000
    const meanwhile = () => {
      guest.addTask({ pid: next, comm: 'short', state: 'queued' })
      if (next > 5003) guest.exitTask(next - 4)
      next++
    }
    const linux = await Linux.attach(guest.vm({ meanwhile }))
    const { hits } = await integrity(linux)
    expect(hits).toEqual([])
  })
})
