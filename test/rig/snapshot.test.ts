import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Linux } from '../../src/vmi/linux/linux.js'
import { openVm } from '../../src/vmi/sources/open.js'
import { bootVm, type Vm } from './lib/index.js'

/** What a source shows of the VM's kernel; made without what another source learnt of it. */
async function look(uri: string, folder: string) {
  process.env.CLOUDAPP_CACHE = path.join(folder, `cache-${uri.slice(0, uri.indexOf(':'))}`)
  await using source = await openVm(uri)
  const linux = await Linux.attach(source)
  const [tasks, modules] = [await linux.tasks(), await linux.modules()]
  const vcpus = (await source.vcpus?.registers()) ?? []
  return {
    release: linux.release,
    levels: linux.profile.boot.levels,
    tasks,
    modules,
    vcpus: vcpus.map(({ missing, lstar, efer, ...rest }) => rest),
    missing: Object.keys(vcpus[0]?.missing ?? {}).sort(),
    pausable: source.pause !== undefined,
  }
}

describe('a VM and its snapshots', () => {
  let vm: Vm
  let folder = ''
  let live: Awaited<ReturnType<typeof look>>
  beforeAll(async () => {
    folder = mkdtempSync(path.join(tmpdir(), 'snapshot-'))
    vm = await bootVm({ memory: '256M', cpus: 2, name: 'client', modules: ['loop'] })
    await vm.guest.run('sleep 3131 >/dev/null 2>&1 & until grep -q sleep /proc/$!/comm; do sleep 0.1; done')
    await vm.monitor.execute('stop')
    live = await look(vm.uri, folder)
  })
  afterAll(async () => {
    delete process.env.CLOUDAPP_CACHE
    await vm?.close()
    rmSync(folder, { recursive: true, force: true })
  })

  it('has something to compare', () => {
    expect(live.tasks.map(({ comm }) => comm)).toEqual(expect.arrayContaining(['kthreadd', 'sleep']))
  })

  it("elf: shows QEMU's dump-guest-memory as the VM was, registers included", async () => {
    const file = path.join(folder, 'client.elf')
    await vm.monitor.execute('dump-guest-memory', { paging: false, protocol: `file:${file}` }, { timeoutMs: 120_000 })
    const seen = await look(`elf:${file}`, folder)
    expect(seen).toEqual({ ...live, missing: ['efer', 'lstar'], pausable: false })
    expect(seen.vcpus).toHaveLength(2)
    rmSync(file)
  })

  it('elf: takes a dump with paging, which lists memory by virtual addresses too', async () => {
    const file = path.join(folder, 'paging.elf')
    await vm.monitor.execute('dump-guest-memory', { paging: true, protocol: `file:${file}` }, { timeoutMs: 120_000 })
    const seen = await look(`elf:${file}`, folder)
    expect(seen.tasks).toEqual(live.tasks)
    rmSync(file)
  })

  it('elf: names a compressed dump', async () => {
    const file = path.join(folder, 'client.kdump')
    const call = { paging: false, protocol: `file:${file}`, format: 'kdump-zlib' }
    await vm.monitor.execute('dump-guest-memory', call, { timeoutMs: 120_000 })
    await expect(openVm(`elf:${file}`)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_UNSUPPORTED',
      message: expect.stringContaining('kdump'),
    })
    rmSync(file)
  })

  it('lime: shows the same', async () => {
    const file = path.join(folder, 'client.lime')
    const ram = readFileSync(vm.ram)
    const out = openSync(file, 'w')
    for (const [first, end] of [
      [0x1000, 0x9fc00],
      [0x10_0000, ram.length],
    ] as const) {
      const head = Buffer.alloc(32)
      head.write('EMiL')
      head.writeUInt32LE(1, 4)
      head.writeBigUInt64LE(BigInt(first), 8)
      head.writeBigUInt64LE(BigInt(end - 1), 16)
      writeSync(out, head)
      writeSync(out, ram, first, end - first)
    }
    closeSync(out)
    const seen = await look(`lime:${file}`, folder)
    expect(seen).toEqual({ ...live, vcpus: [], missing: [], pausable: false })
  })
})
