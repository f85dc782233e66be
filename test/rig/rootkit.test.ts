import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { bootVm, kernel, ROOTKIT, rootkit, rootkitParameters, type Vm } from './lib/index.js'

// Without these proofs a detector's test says nothing: that which hides must be there, and must be hidden.
describe('the rootkit', () => {
  let vm: Vm
  let pid = 0
  const lines = async (script: string): Promise<string[]> =>
    (await vm.guest.run(script, { check: false })).stdout.trim().split('\n').filter(Boolean)

  beforeAll(async () => {
    const linux = await kernel('6.1')
    vm = await bootVm({ kernel: linux, cpus: 2, files: { '/shade.ko': await rootkit(linux) } })
    const beat = '(while true; do cat /proc/uptime > /tmp/beat; sleep 0.1; done) & echo $! > /tmp/pid'
    await vm.guest.run(`${beat}; cat /tmp/pid`)
    pid = Number((await lines('cat /tmp/pid'))[0])
  })
  afterAll(async () => vm?.close())

  const listed = (): Promise<string[]> => lines(`ps -o pid | grep -w ${pid}; ls /proc | grep -x ${pid}`)
  const beat = async (): Promise<string> => (await lines('cat /tmp/beat'))[0] ?? ''

  it('is not there before it is loaded', async () => {
    expect(await listed()).toHaveLength(2)
    expect(await lines(`su nobody -s /bin/sh -c 'kill -64 31337; grep Uid /proc/self/status'`)).toEqual([
      'Uid:\t65534\t65534\t65534\t65534',
    ])
  })

  it('hides a living process, diverts kill and hides itself', async () => {
    const parameters = rootkitParameters({ hidePids: [pid], hookFtrace: true, hookPatch: true, hideModule: true })
    await vm.guest.run(`insmod /shade.ko ${parameters}`)
    expect(vm.consoleTail()).not.toMatch(/shade: .*error/)
    expect(await listed()).toEqual([])
    expect(
      await lines(`lsmod | grep ${ROOTKIT}; ls /sys/module | grep ${ROOTKIT}; grep ${ROOTKIT} /proc/modules`),
    ).toEqual([])
    expect(await lines(`kill -0 ${pid} && cat /proc/${pid}/comm`)).toEqual(['sh'])
    const before = await beat()
    await vm.guest.run(`until [ "$(cat /tmp/beat)" != "${before}" ]; do sleep 0.1; done`)
    expect(await lines(`su nobody -s /bin/sh -c 'kill -64 31337; grep Uid /proc/self/status'`)).toEqual([
      'Uid:\t0\t0\t0\t0',
    ])
  })

  it('lets the guest work on under load', async () => {
    const load = 'i=0; while [ $i -lt 60 ]; do ls /proc > /dev/null; ps > /dev/null; (sleep 0.01 &); i=$((i+1)); done'
    await vm.guest.run(load)
    expect(await listed()).toEqual([])
    expect(await lines("dmesg | grep -E 'BUG:|WARNING:|Oops|general protection'")).toEqual([])
  })

  it('is survived by the guest when the hidden process ends', async () => {
    await vm.guest.run(
      `kill -9 ${pid}; until ! [ -e /proc/${pid}/stat ] || grep -q ' Z ' /proc/${pid}/stat; do sleep 0.1; done`,
    )
    const before = await beat()
    await vm.guest.run('sleep 0.5; ps > /dev/null')
    expect(await beat()).toBe(before)
    expect(await lines("dmesg | grep -E 'BUG:|WARNING:|Oops|general protection|list_del'")).toEqual([])
  })
})
