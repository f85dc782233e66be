import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Hit } from '../../src/vmi/linux/integrity/hit.js'
import { crossView, type IntegrityReport, integrity } from '../../src/vmi/linux/integrity/integrity.js'
import { Linux } from '../../src/vmi/linux/linux.js'
import { openVm } from '../../src/vmi/sources/open.js'
import { bootVm, type KernelName, kernel, type RootkitOptions, rootkit, rootkitParameters } from './lib/index.js'

/** Boots a VM, loads the rootkit in it as asked, and inspects it from outside. */
async function inspect(
  options: RootkitOptions,
  release: KernelName = '6.1',
): Promise<{ report: IntegrityReport; pid: number; hits: (kind: string) => Hit[] }> {
  const linux = await kernel(release)
  const module = await rootkit(linux)
  await using vm = await bootVm({ name: 'rootkit', kernel: linux, files: { '/lib/rig/shade.ko': module } })
  const { stdout } = await vm.guest.run(
    'sleep 31337 >/dev/null 2>&1 & until grep -q sleep /proc/$!/comm; do sleep 0.1; done; echo $!',
  )
  const pid = Number(stdout)
  const hides = Object.keys(options).some((name) => name === 'unlinkTask' || name === 'unhashIdr')
  await vm.guest.run(`insmod /lib/rig/shade.ko ${rootkitParameters(hides ? { ...options, hidePids: [pid] } : options)}`)
  await using source = await openVm(vm.uri)
  const report = await integrity(await Linux.attach(source), source.vcpus === undefined ? {} : { vcpus: source.vcpus })
  return { report, pid, hits: (kind) => report.hits.filter((hit) => hit.kind === kind) }
}

describe('what one technique of the rootkit leaves', () => {
  test('a process off the task list', async () => {
    const { report, pid, hits } = await inspect({ unlinkTask: true })
    expect(hits('hidden-process')).toHaveLength(1)
    expect(hits('hidden-process')[0]?.evidence).toMatchObject({
      process: { pid, name: 'sleep' },
      data: { missingFrom: ['task list'] },
    })
    expect(report.hits).toHaveLength(1)
    expect(report.checks.filter((check) => !check.done)).toEqual([])
  })

  test('a process out of the pid IDR, which is what ps reads', async () => {
    const { report, pid, hits } = await inspect({ unlinkTask: false, unhashIdr: true })
    expect(hits('hidden-process')[0]?.evidence).toMatchObject({ process: { pid }, data: { missingFrom: ['pid IDR'] } })
    expect(report.hits).toHaveLength(1)
  })

  test('a process out of both is still in a cgroup', async () => {
    const { pid, hits } = await inspect({ unlinkTask: true, unhashIdr: true })
    expect(hits('hidden-process')[0]?.evidence).toMatchObject({
      process: { pid },
      data: { missingFrom: ['task list', 'pid IDR'] },
    })
  })

  test('a listed module may divert what it likes', async () => {
    const { report } = await inspect({ hookFtrace: true, hookPatch: true, hookKprobe: true })
    expect(report.hits).toEqual([])
  })
})

const EVERYTHING = {
  hideModule: true,
  hookFtrace: true,
  hookPatch: true,
  hookIdt: true,
  hookSct: true,
  hookKprobe: true,
  hookLstar: true,
}

test.each(['6.1', '6.12-bpo'] as const)('every way in that leads to a hidden module, on Linux %s', async (release) => {
  const { report, hits } = await inspect(EVERYTHING, release)
  expect(hits('hidden-module')[0]?.evidence).toMatchObject({ module: 'shade', data: { state: 'live' } })
  const calls = Object.fromEntries(
    hits('diverted-syscall').map(({ evidence }) => [evidence.data.function ?? evidence.data.table, evidence]),
  )
  expect(Object.keys(calls).sort()).toEqual([
    '__x64_sys_getdents64',
    '__x64_sys_kill',
    '__x64_sys_openat',
    'sys_call_table',
  ])
  expect(calls.__x64_sys_getdents64).toMatchObject({ module: 'shade', data: { mechanism: 'ftrace' } })
  expect(calls.__x64_sys_kill).toMatchObject({
    module: 'shade',
    data: { mechanism: 'a patched jump', place: '__x64_sys_kill+0x0' },
  })
  expect(calls.__x64_sys_openat).toMatchObject({ module: 'shade', data: { mechanism: 'kprobe' } })
  // __NR_uname, arch/x86/entry/syscalls/syscall_64.tbl
  expect(calls.sys_call_table).toMatchObject({
    module: 'shade',
    data: { number: 63, leadsTo: expect.stringMatching(/^\[shade\]\+0x/) },
  })
  expect(hits('diverted-interrupt')[0]?.evidence).toMatchObject({ data: { vector: 0xd0 } })
  expect(hits('diverted-entry')[0]?.evidence).toMatchObject({
    data: { vcpu: 0, leadsTo: expect.stringMatching(/^\[shade\]\+0x/) },
  })
  expect(report.hits.every((hit) => hit.confidence === 'high')).toBe(true)
  // By title, so that a failure says what is too much.
  expect(report.hits.map(({ title }) => title)).toHaveLength(7)
})

describe('a sound guest', () => {
  let close = async () => {}
  let attached: Linux
  beforeAll(async () => {
    const vm = await bootVm({ name: 'sound', kernel: '6.12-bpo', cpus: 2 })
    const source = await openVm(vm.uri)
    attached = await Linux.attach(source)
    close = async () => {
      await source.close()
      await vm.close()
    }
  })
  afterAll(() => close())

  test('gives nothing on Linux 6.12', async () => {
    const { vcpus } = attached.vm
    const report = await integrity(attached, vcpus === undefined ? {} : { vcpus })
    expect(report.hits).toEqual([])
    expect(report.checks.filter((check) => !check.done)).toEqual([])
    expect(await crossView(attached)).toEqual([])
  })
})
