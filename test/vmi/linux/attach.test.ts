import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it, vi } from 'vitest'
import { CloudAppError } from '../../../src/errors.js'
import { BufferMemory, type SyntheticGuestOptions, syntheticGuest } from '../../../src/testing/index.js'
import { Linux } from '../../../src/vmi/linux/linux.js'
import { makeKernelProfile } from '../../../src/vmi/linux/make-profile.js'
import { KernelProfile } from '../../../src/vmi/linux/profile.js'

// Each attach starts a process.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

async function attach(
  options: SyntheticGuestOptions = {},
  prepare?: (guest: ReturnType<typeof syntheticGuest>) => void,
) {
  const guest = syntheticGuest({ functions: 200, ...options })
  prepare?.(guest)
  const vm = guest.vm({ cache: false })
  return { guest, vm, linux: await Linux.attach(vm) }
}

/** The error an attach ends in. */
async function refusal(options: SyntheticGuestOptions, prepare?: Parameters<typeof attach>[1]): Promise<CloudAppError> {
  try {
    await attach(options, prepare)
  } catch (error) {
    if (CloudAppError.is(error)) return error
    throw error
  }
  throw new Error('attached')
}

describe('attaching with no configuration', () => {
  const variants: SyntheticGuestOptions[] = [
    { release: '5.10.0-test' },
    { release: '5.15.0-test', levels: 4 },
    { release: '6.1.0-test' },
    { release: '6.2.0-test', kallsymsNamed: false },
    { release: '6.6.0-test', levels: 4, pages: '4K' },
    { release: '6.12.0-test' },
    { release: '6.16.0-test', pages: '1G' },
    { release: '7.1.0-test' },
    { release: '7.1.0-test', kallsymsNamed: false },
    { release: '6.1.0-test', kaslr: false, cpus: 1 },
    { release: '5.10.0-test', vmcoreinfo: false },
    { release: '6.1.0-test', vmcoreinfo: false, seed: 9 },
    { release: '6.12.0-test', vmcoreinfo: false, levels: 4 },
    { release: '7.1.0-test', vmcoreinfo: false },
  ]
  it.each(variants)('finds the kernel of %o', async (options) => {
    const { guest, linux } = await attach(options)
    expect(linux.release).toBe(guest.release)
    expect(linux.space).toBe(guest.space)
    expect(linux.profile.boot.levels).toBe(options.levels ?? 5)
    expect(linux.cpus).toBe(options.cpus ?? 2)
    const symbols = await linux.symbols()
    for (const name of ['_text', '_etext', 'init_task', 'modules', 'runqueues', 'entry_SYSCALL_64'])
      expect([name, symbols.get(name)]).toEqual([name, guest.symbol(name)])
    const types = await linux.types()
    expect(types.offset('task_struct.comm')).toBe(guest.offset('task_struct', 'comm'))
    const processes = guest.tasks().filter(({ pid, tgid }) => pid === tgid && pid !== 0)
    const tasks = await linux.tasks()
    expect(tasks.map(({ pid, comm, uid, task }) => ({ pid, comm, uid, task }))).toEqual(
      processes.map(({ pid, comm, uid, address }) => ({ pid, comm: comm.slice(0, 15), uid, task: address })),
    )
    const modules = await linux.modules()
    expect(modules.map(({ name }) => name).sort()).toEqual(
      guest
        .modules()
        .map(({ name }) => name)
        .sort(),
    )
  })

  it('tells what lies at an address', async () => {
    const { guest, linux } = await attach()
    expect(await linux.symbolAt(guest.symbol('entry_SYSCALL_64') + 3n)).toEqual({
      name: 'entry_SYSCALL_64',
      offset: 3n,
    })
    const [module] = await linux.modules()
    const where = await linux.symbolAt((module?.base ?? 0n) + 4n)
    expect(where?.module).toBe(module?.name)
    expect(await linux.symbolAt(0x1000n)).toBeUndefined()
    expect(await linux.trySymbol('no_such_symbol')).toBeUndefined()
    await expect(linux.symbol('no_such_symbol')).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_PROFILE',
      details: { part: 'no_such_symbol' },
    })
  })

  it('needs the right to read memory', async () => {
    const guest = syntheticGuest({ functions: 0 })
    const { memory: _, ...rest } = guest.vm()
    const blind = { ...rest, identity: { name: 'blind', uuid: '', bootNonce: '' } } as unknown as Parameters<
      typeof Linux.attach
    >[0]
    await expect(Linux.attach(blind)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_DENIED', right: 'memory.read' })
  })
})

describe('attaching to a guest that lies', () => {
  it('says where it looked when there is no kernel', async () => {
    const error = await refusal({}, (guest) => guest.ram.fill(0))
    expect(error.code).toBe('ERR_CLOUDAPP_PROFILE')
    expect(error.message).toMatch(
      /no Linux kernel found in 33554432 bytes of RAM: VMCOREINFO.*0 copies.*token table: 0 places/,
    )
  })

  it('names missing types', async () => {
    expect(await refusal({ btf: false })).toMatchObject({ code: 'ERR_CLOUDAPP_PROFILE', details: { part: 'BTF' } })
  })

  it.each(['strings', 'types', 'names', 'length'] as const)('refuses BTF with wild %s', async (what) => {
    const error = await refusal({}, (guest) => guest.lies.wildBtf(what))
    expect(error).toMatchObject({ code: 'ERR_CLOUDAPP_PROFILE', details: { part: 'BTF' } })
  })

  it.each(['kallsyms_names', 'kallsyms_token_table', 'kallsyms_token_index', 'kallsyms_offsets', 'kallsyms_num_syms'])(
    'refuses a wild %s',
    async (table) => {
      const error = await refusal({}, (guest) => guest.lies.wildKallsyms(table))
      expect(error.code).toBe('ERR_CLOUDAPP_PROFILE')
    },
  )

  it('finds a kernel whose VMCOREINFO was wiped', async () => {
    const { linux, guest } = await attach({}, (guest) => guest.lies.eraseVmcoreinfo())
    expect(await linux.symbol('init_task')).toBe(guest.symbol('init_task'))
  })

  it('passes over stale and planted copies of VMCOREINFO', async () => {
    const { linux, guest } = await attach({}, (guest) => {
      const mark = Buffer.from('OSRELEASE=')
      const ram = Buffer.from(guest.ram.buffer, guest.ram.byteOffset, guest.ram.byteLength)
      const at = ram.indexOf(mark)
      const page = Buffer.from(ram.subarray(at, at + 4096))
      // An earlier boot of the same kernel: other addresses, in free pages, before and behind the real one.
      const stale = Buffer.from(page.toString('latin1').replace(/phys_base\)=-?\d+/, 'phys_base)=4096'), 'latin1')
      const free: number[] = []
      for (let page = 4096; page < ram.length && free.length < 8; page += 4096)
        if (ram.subarray(page, page + 4096).every((byte) => byte === 0)) free.push(page)
      for (const place of [...free.slice(0, 4), ...lastFree(ram, 4)]) stale.copy(ram, place)
    })
    expect(await linux.symbol('init_task')).toBe(guest.symbol('init_task'))
  })

  it('takes the kernel that runs, not what an earlier boot left in RAM', async () => {
    const cache = mkdtempSync(join(tmpdir(), 'stale-'))
    try {
      let left = 0
      for (const [old, now] of [
        [3, 4],
        [4, 3],
        [5, 6],
        [6, 7],
      ] as const) {
        const stale = syntheticGuest({ functions: 50, seed: old })
        const live = syntheticGuest({ functions: 50, seed: now })
        const ram = Buffer.from(stale.ram)
        for (let page = 0; page < ram.length; page += 4096) {
          const bytes = live.ram.subarray(page, page + 4096)
          if (bytes.some((byte) => byte !== 0)) ram.set(bytes, page)
        }
        // The old kernel may be in the cache, and the new one not; later both are.
        const staleMemory = stale.vm().memory
        if (staleMemory === undefined) throw new Error('a synthetic guest has memory')
        await makeKernelProfile(staleMemory, { cache })
        for (const where of [false, cache, cache] as const) {
          const { header } = await makeKernelProfile(new BufferMemory(ram), { cache: where })
          expect(KernelProfile.open(header).symbol('init_task')).toBe(live.symbol('init_task'))
        }
        if (ram.includes(Buffer.from('OSRELEASE='), ram.indexOf('OSRELEASE=') + 4096)) left++
      }
      expect(left).toBeGreaterThan(0)
    } finally {
      rmSync(cache, { recursive: true })
    }
  })

  it('refuses RAM that was cut off', async () => {
    for (const bytes of [4096, 6 * 1024 * 1024, 12 * 1024 * 1024]) {
      const error = await refusal({ kaslr: false }, (guest) => guest.lies.truncate(bytes))
      expect(error.code).toBe('ERR_CLOUDAPP_PROFILE')
    }
  })

  it('is not held up by page tables that point at themselves', async () => {
    const { linux } = await attach({}, (guest) => guest.lies.selfPageTables())
    expect((await linux.tasks()).length).toBeGreaterThan(2)
  })

  it('states how a damaged list ends', async () => {
    const cyclic = await attach({}, (guest) => guest.lies.cyclicList('tasks'))
    await expect(cyclic.linux.tasks()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_GUEST_CORRUPT' })
    expect((await cyclic.linux.taskList()).end).toBe('cycle')
    const wild = await attach({}, (guest) => guest.lies.wildPointer('modules'))
    await expect(wild.linux.modules()).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_GUEST_CORRUPT',
      address: 0x0123_4567_89ab_cdefn,
    })
    const long = await attach({}, (guest) => guest.lies.longList('tasks'))
    await expect(long.linux.tasks()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT' })
    expect(await long.linux.taskList({ limit: 500 })).toMatchObject({ end: 'limit', tasks: { length: 500 } })
  })
})

function lastFree(ram: Buffer, count: number): number[] {
  const free: number[] = []
  for (let page = ram.length - 4096; page > 0 && free.length < count; page -= 4096)
    if (ram.subarray(page, page + 4096).every((byte) => byte === 0)) free.push(page)
  return free
}
