import { chmodSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { PHYSICAL, virtualSpace } from '../../src/vmi/memory.js'
import { openQemu } from '../../src/vmi/sources/qemu.js'
import { recoverVms } from '../../src/vmi/sources/recover.js'
import { holding } from './lib/holding.js'
import { bootVm, type Vm } from './lib/index.js'

const registers = (cpu: string, levels: 4 | 5, memory: string) => () => {
  let vm: Vm
  beforeAll(async () => {
    vm = await bootVm({ cpu, memory, cpus: 2, name: 'client' })
  })
  afterAll(async () => vm?.close())

  const symbol = async (name: string): Promise<bigint> => {
    const { stdout } = await vm.guest.run(`grep -w ${name} /proc/kallsyms`)
    return BigInt(`0x${stdout.split(' ')[0]}`)
  }

  it('names the VM', async () => {
    await using client = await openQemu(vm.qmp)
    await client.close()
    await using again = await openQemu(vm.qmp)
    expect(client.identity.name).toBe('client')
    expect(client.identity.uuid).toMatch(/^[0-9a-f-]{36}$/)
    expect(client.identity.bootNonce).toMatch(/^[0-9a-f]{32}$/)
    expect(again.identity).toEqual(client.identity)
    await again.close()
    await using told = await openQemu(vm.qmp, { bootNonce: 'ab'.repeat(16) })
    expect(told.identity.bootNonce).toBe('ab'.repeat(16))
  })

  it('gives the registers the guest runs with, LSTAR among them, and lets it run on', async () => {
    await using client = await openQemu(vm.qmp)
    const vcpus = await client.vcpus?.registers()
    const entry = await symbol('entry_SYSCALL_64')
    expect(vcpus?.map(({ index }) => index)).toEqual([0, 1])
    for (const vcpu of vcpus ?? []) {
      expect(vcpu.missing).toBeUndefined()
      expect(vcpu.lstar).toBe(entry)
      expect(vcpu.idtBase).toBe(0xfffffe0000000000n)
      expect(vcpu.idtLimit).toBe(0xfff)
      expect((vcpu.cr4 ?? 0n) & (1n << 12n)).toBe(levels === 5 ? 1n << 12n : 0n)
      expect(vcpu.efer).toBe(0xd01n)
    }
    expect(await vm.monitor.execute('query-status')).toMatchObject({ running: true })
    expect(readdirSync('/tmp').filter((name) => name.startsWith('cloudapp-state-'))).toEqual([])
  })

  it('says why LSTAR is missing when it may not stop the VM for it', async () => {
    await using client = await openQemu(vm.qmp, { deviceState: false })
    const [vcpu] = (await client.vcpus?.registers()) ?? []
    expect(vcpu?.lstar).toBeUndefined()
    expect(vcpu?.missing?.lstar).toContain('deviceState')
  })

  it('reads the guest memory where the guest has it', async () => {
    await using client = await openQemu(vm.qmp)
    const [vcpu] = (await client.vcpus?.registers()) ?? []
    const space = virtualSpace(vcpu?.cr3 ?? 0n, levels)
    const banner = await symbol('linux_banner')
    const [result] = await client.memory.read([{ space, at: banner, length: 64 }])
    const { stdout } = await vm.guest.run('cat /proc/version')
    expect(result?.faults).toEqual([])
    expect(Buffer.from(result?.bytes ?? []).toString('latin1')).toBe(stdout.slice(0, 64))
  })

  it('sees all of RAM, also behind the PCI hole', async () => {
    await using client = await openQemu(vm.qmp)
    const { stdout } = await vm.guest.run("grep 'System RAM' /proc/iomem | tail -1")
    const [, last = '0'] = /-([0-9a-f]+) :/.exec(stdout) ?? []
    expect(client.memory.end).toBeGreaterThan(BigInt(`0x${last}`))
    expect(client.memory.end).toBe(memory === '4G' ? 0x1_8000_0000n : 512n << 20n)
    // The kernel keeps the description of its memory at the end of it; the number of pages it spans is in there.
    const { stdout: log } = await vm.guest.run('dmesg | grep NODE_DATA')
    const [, from = '0', to = '0'] = /mem 0x([0-9a-f]+)-0x([0-9a-f]+)\]/.exec(log) ?? []
    const spanned = Buffer.alloc(8)
    spanned.writeBigUInt64LE((BigInt(`0x${last}`) + 1n) / 4096n - 1n)
    const found = await client.memory.search({
      space: PHYSICAL,
      start: BigInt(`0x${from}`),
      end: BigInt(`0x${to}`) + 1n,
      patterns: [spanned],
      align: 8,
      limit: 16,
    })
    expect(BigInt(`0x${from}`)).toBeGreaterThan(memory === '4G' ? 1n << 32n : 0n)
    expect(found.matches.length).toBeGreaterThan(0)
    const hole = await client.memory.read([{ space: PHYSICAL, at: 0xc000_0000n, length: 8 }])
    expect(hole[0]?.faults[0]?.reason).toBe('outside-ram')
  })
}

describe('qemu: 512 MiB, 5-level paging', registers('max', 5, '512M'))
describe('qemu: 4 GiB, 4-level paging', registers('max,-la57', 4, '4G'))

describe('qemu: pause', () => {
  let vm: Vm
  beforeAll(async () => {
    vm = await bootVm()
  })
  afterAll(async () => vm?.close())
  const running = async (): Promise<boolean> =>
    ((await vm.monitor.execute('query-status')) as { running: boolean }).running

  it('counts nested scopes', async () => {
    await using client = await openQemu(vm.qmp)
    const read = async () => (await client.memory.read([{ space: PHYSICAL, at: 0n, length: 8 }]))[0]?.consistent
    expect(await read()).toBe(false)
    const first = await client.pause?.()
    const second = await client.pause?.()
    expect(await running()).toBe(false)
    await first?.close()
    await first?.close()
    expect(await running()).toBe(false)
    expect(await read()).toBe(true)
    const [vcpu] = (await client.vcpus?.registers()) ?? []
    expect(vcpu?.lstar).toBeDefined()
    expect(await running()).toBe(false)
    await second?.close()
    expect(await running()).toBe(true)
    expect(await read()).toBe(false)
  })

  it('lets the VM run on when the source is closed', async () => {
    const client = await openQemu(vm.qmp)
    await client.pause?.()
    expect(await running()).toBe(false)
    await client.close()
    expect(await running()).toBe(true)
    await expect(client.pause?.()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  it('leaves a VM paused that somebody else had paused', async () => {
    await vm.monitor.execute('stop')
    const client = await openQemu(vm.qmp)
    await (await client.pause?.())?.close()
    await client.pause?.()
    await client.close()
    expect(await running()).toBe(false)
    await vm.monitor.execute('cont')
  })

  it('lets the VM run on when the process that holds it is killed', async () => {
    const resumed = new Promise<void>((resolve) => {
      const unhear = vm.monitor.onEvent(({ event }) => {
        if (event !== 'RESUME') return
        unhear()
        resolve()
      })
    })
    const { holder, entry } = await holding(vm.qmp)
    expect(await running()).toBe(false)
    expect(existsSync(entry)).toBe(true)
    holder.kill('SIGKILL')
    await resumed
    expect(await running()).toBe(true)
    while (existsSync(entry)) await new Promise((resolve) => setTimeout(resolve, 10))
  })

  describe('paused by a process that is killed together with its guard', () => {
    it('is let run on by whoever opens it', async () => {
      const { entry, killAll } = await holding(vm.qmp)
      await killAll()
      expect(await running()).toBe(false)
      await using _opened = await openQemu(vm.qmp)
      expect(await running()).toBe(true)
      expect(existsSync(entry)).toBe(false)
    })

    it('is let run on by a recovery of all, which leaves alone what a living process holds', async () => {
      const { entry, killAll } = await holding(vm.qmp)
      expect(await recoverVms()).toEqual([])
      expect(await running()).toBe(false)
      await killAll()
      expect(await running()).toBe(false)
      expect(await recoverVms()).toEqual([{ source: vm.uri, breakpoints: 0, events: false, pauses: 1 }])
      expect(await running()).toBe(true)
      expect(existsSync(entry)).toBe(false)
    })
  })

  it('stays as somebody else paused it, whatever the ledger still says', async () => {
    const { entry, killAll } = await holding(vm.qmp)
    const text = readFileSync(entry, 'utf8')
    await killAll()
    await recoverVms()
    await vm.monitor.execute('stop')
    // Of a QEMU that has gone; of nothing; too long; of processes that can not be seen from here.
    const others = { gone: text.replace(vm.qmp, `${vm.qmp}-gone`), broken: '{', long: text.padEnd(10_000) }
    for (const [name, words] of Object.entries(others)) writeFileSync(`${entry}-${name}`, words)
    const elsewhere = text.replace(/pid:\[\d+\]/, 'pid:[1]')
    writeFileSync(`${entry}-elsewhere`, elsewhere)
    expect(elsewhere).not.toBe(text)
    expect(await recoverVms()).toEqual([])
    expect(await running()).toBe(false)
    for (const name of Object.keys(others)) expect(existsSync(`${entry}-${name}`)).toBe(false)
    rmSync(`${entry}-elsewhere`)
    await vm.monitor.execute('cont')
  })

  it('is neither opened nor paused where others can write to the ledger', async () => {
    const { killAll, entry } = await holding(vm.qmp)
    await killAll()
    await recoverVms()
    await using opened = await openQemu(vm.qmp)
    const folder = path.dirname(entry)
    chmodSync(folder, 0o770)
    try {
      const refused = { code: 'ERR_CLOUDAPP_SOURCE', message: expect.stringContaining(folder) }
      await expect(opened.pause?.()).rejects.toMatchObject(refused)
      expect(await running()).toBe(true)
      await opened.close()
      await expect(openQemu(vm.qmp)).rejects.toMatchObject(refused)
    } finally {
      chmodSync(folder, 0o700)
    }
  })

  it('ends the handle when QEMU goes', async () => {
    const other = await bootVm({ name: 'short' })
    const client = await openQemu(other.qmp)
    const ended = new Promise<void>((resolve) => client.closed.addEventListener('abort', () => resolve()))
    await other.close()
    await ended
    expect(client.closed.reason).toMatchObject({ code: 'ERR_CLOUDAPP_SOURCE' })
    await expect(client.memory.read([{ space: PHYSICAL, at: 0n, length: 8 }])).rejects.toMatchObject({
      code: expect.stringMatching(/^ERR_CLOUDAPP_(CLOSED|SOURCE)$/),
    })
    expect(existsSync(other.folder)).toBe(false)
  })
})
