import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { CloudAppError, type CloudAppErrorCode } from '../../src/errors.js'
import { type SyntheticGuestOptions, syntheticGuest } from '../../src/testing/index.js'
import { PageFlags } from '../../src/vmi/memory.js'

const code = (work: () => unknown): CloudAppErrorCode | undefined => {
  try {
    work()
  } catch (error) {
    if (CloudAppError.is(error)) return error.code
    throw error
  }
  return undefined
}

describe('syntheticGuest', () => {
  it('makes the same bytes from the same options, and others from another seed', () => {
    const bytes = (options: SyntheticGuestOptions) => Buffer.from(syntheticGuest(options).ram)
    expect(bytes({ seed: 5, busy: true }).equals(bytes({ seed: 5, busy: true }))).toBe(true)
    expect(bytes({ seed: 5 }).equals(bytes({ seed: 6 }))).toBe(false)
  })

  it('draws places and field offsets from the seed, so that none can be learnt by heart', () => {
    const facts = [1, 2, 3, 4, 5, 6].map((seed) => {
      const guest = syntheticGuest({ seed, functions: 0, modules: [] })
      return [
        guest.offset('task_struct', 'pid'),
        guest.offset('module', 'name'),
        guest.symbol('init_task'),
        guest.task(1).dtb,
      ]
    })
    for (const [i] of facts[0]?.entries() ?? []) expect(new Set(facts.map((row) => row[i])).size).toBeGreaterThan(3)
  })

  it('keeps what an ABI fixes', () => {
    const guest = syntheticGuest({ seed: 9, functions: 0 })
    expect(guest.offset('list_head', 'prev')).toBe(8)
    expect(guest.offset('rb_node', 'rb_left')).toBe(16)
    expect(guest.offset('gate_struct', 'offset_high')).toBe(8)
    expect(guest.offset('elf64_sym', 'st_value')).toBe(8)
  })

  it('shapes structures as the release does', () => {
    const has = (release: string, struct: string, path: string) =>
      code(() => syntheticGuest({ release, functions: 0, modules: [], tasks: [] }).offset(struct, path)) === undefined
    expect(has('5.10.0', 'task_struct', 'state')).toBe(true)
    expect(has('6.1.0', 'task_struct', '__state')).toBe(true)
    expect(has('6.1.0', 'module', 'core_layout.base')).toBe(true)
    expect(has('6.4.0', 'module', 'core_layout.base')).toBe(false)
    expect(has('6.4.0', 'module', 'mem[0].base')).toBe(true)
    expect(has('6.7.0', 'task_struct', 'thread_group')).toBe(false)
    expect(has('5.10.0', 'bpf_prog_pack', 'ptr')).toBe(false)
    expect(has('6.9.0', 'vmap_node', 'busy.head')).toBe(true)
  })

  it.each([
    ['4K', 0x1000n],
    ['2M', 0x20_0000n],
    ['1G', 0x4000_0000n],
  ] as const)('maps RAM directly in pages of %s', async (pages, size) => {
    const guest = syntheticGuest({ pages, functions: 0, levels: 4, kaslr: false })
    const start = 0xffff_8880_0000_0000n
    const { memory } = guest.vm()
    const mapped = await memory?.pages({ space: guest.space, start, end: start + (1n << 40n), limit: 8 })
    expect(mapped).toMatchObject({ runs: 1, end: 'complete' })
    expect(mapped?.flags[0]).toBe(PageFlags.Write)
    expect((mapped?.sizes[0] ?? 0n) % size).toBe(0n)
  })

  it('gives each part of the kernel and of a module its permissions', async () => {
    const guest = syntheticGuest({ functions: 0 })
    const flags = async (at: bigint) => {
      const { memory } = guest.vm()
      const page = at & ~0xfffn
      return (await memory?.pages({ space: guest.space, start: page, end: page + 4096n, limit: 1 }))?.flags[0]
    }
    expect(await flags(guest.symbol('_stext'))).toBe(PageFlags.Execute)
    expect(await flags(guest.symbol('__start_BTF'))).toBe(0)
    expect(await flags(guest.symbol('init_task'))).toBe(PageFlags.Write)
    const ext4 = guest.module('ext4')
    expect(await flags(ext4.text.start)).toBe(PageFlags.Execute)
    expect(await flags(ext4.address)).toBe(PageFlags.Write)
    expect(await flags(0xffff_fe00_0000_0000n)).toBe(0)
  })

  it('gives each process memory of its own, with the kernel in it', async () => {
    const guest = syntheticGuest({ functions: 0 })
    const { memory } = guest.vm()
    const [bash, top] = [guest.task(915), guest.task(1042)]
    expect(bash.dtb).not.toBe(top.dtb)
    const mm = guest.struct('task_struct', bash.address).get('mm')
    const at = guest.struct('mm_struct', mm).get('arg_start')
    const space = bash.dtb | 5n
    const [line, kernel] =
      (await memory?.read([
        { space, at, length: 13 },
        { space, at: guest.symbol('linux_banner'), length: 13 },
      ])) ?? []
    expect(Buffer.from(line?.bytes ?? []).toString()).toBe('/usr/bin/bash')
    expect(Buffer.from(kernel?.bytes ?? []).toString()).toBe('Linux version')
    const user = await memory?.pages({ space, start: 0n, end: 1n << 47n, want: PageFlags.User, limit: 10 })
    expect([...(user?.flags ?? [])]).toEqual([PageFlags.User | PageFlags.Execute, PageFlags.User | PageFlags.Write])
  })

  it('takes tasks and modules on and lets go of them', () => {
    const guest = syntheticGuest({ functions: 0, tasks: [], modules: [] })
    expect(guest.tasks().map(({ pid }) => pid)).toEqual([1, 2])
    guest.addTask({ pid: 300_000, comm: 'far', threads: [{ pid: 300_001 }] })
    expect(guest.task(300_001)).toMatchObject({ tgid: 300_000, comm: 'far' })
    guest.exitTask(300_000)
    expect(code(() => guest.task(300_001))).toBe('ERR_CLOUDAPP_NOT_FOUND')
    guest.addModule({ name: 'x' })
    expect(code(() => guest.addModule({ name: 'x' }))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
  })

  it.each([
    [{ levels: 3 }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    [{ release: 'linux' }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    [{ release: '4.19.0' }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    [{ memory: 1000 }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    [{ pages: '8K' }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    [{ cpus: 0 }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    [{ tasks: [{ pid: 0, comm: 'x' }] }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    [{ memory: 16 << 20, modules: [{ name: 'big', size: 32 << 20 }] }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    [{ task: [] }, 'ERR_CLOUDAPP_UNKNOWN_OPTION'],
    [{ tasks: [{ pid: 7, name: 'x' }] }, 'ERR_CLOUDAPP_UNKNOWN_OPTION'],
  ])('refuses %o', (options, expected) => {
    expect(code(() => syntheticGuest(options as SyntheticGuestOptions))).toBe(expected)
  })

  it('names what it does not have', () => {
    const guest = syntheticGuest({ functions: 0 })
    const attempts = [
      () => guest.symbol('nothing'),
      () => guest.offset('task_struct', 'nothing'),
      () => guest.struct('nothing', 0n),
      () => guest.task(9999),
      () => guest.hideModule('nothing'),
      () => guest.patchSyscall('nothing', 0n),
      () => guest.patchEntry(0n, 99),
    ]
    expect(attempts.map(code)).toEqual(attempts.map(() => 'ERR_CLOUDAPP_NOT_FOUND'))
    expect(code(() => guest.patchSyscall('read', 1n << 40n))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
  })

  it('writes its RAM to a file', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'cloudapp-testing-'))
    try {
      const guest = syntheticGuest({ functions: 0 })
      guest.lies.truncate(20 << 20)
      await guest.write(join(folder, 'ram'))
      const file = await readFile(join(folder, 'ram'))
      expect(file.equals(guest.ram.subarray(0, 20 << 20))).toBe(true)
    } finally {
      await rm(folder, { recursive: true })
    }
  })

  it('is a VM that pauses, and closes', async () => {
    const guest = syntheticGuest({ functions: 0 })
    const calls: number[] = []
    const vm = guest.vm({ name: 'web-1', meanwhile: () => calls.push(1) })
    const { memory, pause } = vm
    if (memory === undefined || pause === undefined) throw new Error('the VM lacks parts')
    const consistent = async () => (await memory.read([{ space: 0n, at: 0n, length: 8 }]))[0]?.consistent
    expect(await consistent()).toBe(false)
    const outer = await vm.pause?.()
    const inner = await vm.pause?.()
    expect(await consistent()).toBe(true)
    await inner?.close()
    await inner?.close()
    expect(await consistent()).toBe(true)
    expect(calls).toHaveLength(1)
    await outer?.close()
    expect(await consistent()).toBe(false)
    expect(guest.vm({ name: 'web-1' }).identity).toEqual(vm.identity)
    await vm.close()
    expect(vm.closed.aborted).toBe(true)
    await expect(consistent()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
    await expect(vm.vcpus?.registers()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  it('can be opened without vCPUs and without writing', () => {
    const vm = syntheticGuest({ functions: 0 }).vm({ readOnly: true, vcpus: false })
    expect(vm.vcpus).toBeUndefined()
    expect(vm.memory?.write).toBeUndefined()
  })
})
