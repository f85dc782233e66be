import { spawn } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { PHYSICAL, virtualSpace } from '../../src/vmi/memory.js'
import { openQemu } from '../../src/vmi/sources/qemu.js'
import { bootVm, projectRoot, type Vm } from './lib/index.js'

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
    const program = `
      const { openQemu } = await import('./src/vmi/sources/qemu.ts')
      const vm = await openQemu(process.argv[1])
      await vm.pause()
      console.log('paused')
      setInterval(() => {}, 1000)`
    const holder = spawn(
      process.execPath,
      ['--import', './scripts/ts.mjs', '--input-type=module', '-e', program, vm.qmp],
      { cwd: projectRoot, stdio: ['ignore', 'pipe', 'inherit'] },
    )
    await new Promise((resolve, reject) => {
      holder.stdout.once('data', resolve)
      holder.once('exit', () => reject(new Error('the holder ended early')))
    })
    expect(await running()).toBe(false)
    holder.kill('SIGKILL')
    await resumed
    expect(await running()).toBe(true)
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
