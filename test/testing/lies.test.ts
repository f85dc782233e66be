import { describe, expect, it } from 'vitest'
import { CloudAppError } from '../../src/errors.js'
import { type SyntheticGuest, type SyntheticGuestOptions, syntheticGuest } from '../../src/testing/index.js'
import { Linux } from '../../src/vmi/linux/index.js'

const small = (options: SyntheticGuestOptions = {}) => syntheticGuest({ functions: 200, ...options })

/** Attaches while the guest is sound, then lets it lie. */
const attachedTo = async (lie: (guest: SyntheticGuest) => void, options?: SyntheticGuestOptions) => {
  const guest = small(options)
  const linux = await Linux.attach(guest.vm({ running: false }))
  lie(guest)
  return linux
}

const failure = async (work: Promise<unknown>): Promise<CloudAppError> => {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (!CloudAppError.is(error)) throw new Error(`no CloudAppError, but ${String(error)}`)
  return error
}

describe('a guest whose lists lie', () => {
  it.each(['tasks', 'modules'] as const)('a cyclic list of %s is noticed', async (list) => {
    const linux = await attachedTo((guest) => guest.lies.cyclicList(list))
    const error = await failure(list === 'tasks' ? linux.tasks() : linux.modules())
    expect(error.code).toBe('ERR_CLOUDAPP_GUEST_CORRUPT')
    expect(error.address).toBeTypeOf('bigint')
    const { end } = list === 'tasks' ? await linux.taskList() : await linux.moduleList()
    expect(end).toBe('cycle')
  })

  it('an endless list is cut at the limit', async () => {
    const linux = await attachedTo((guest) => guest.lies.longList('tasks'))
    const error = await failure(linux.tasks())
    expect(error.code).toBe('ERR_CLOUDAPP_LIMIT')
    expect(error.address).toBeTypeOf('bigint')
    const { tasks, end } = await linux.taskList({ limit: 1000 })
    expect([tasks.length, end]).toEqual([1000, 'limit'])
  })

  it.each([
    ['non-canonical', 0x0123_4567_89ab_cdefn],
    ['not-present', 0x1000n],
    ['not-present', 0n],
  ])('a pointer to nowhere (%s) ends it with the address', async (reason, address) => {
    const linux = await attachedTo((guest) => guest.lies.wildPointer('tasks', address, 3))
    const error = await failure(linux.tasks())
    expect(error.code).toBe('ERR_CLOUDAPP_GUEST_CORRUPT')
    expect(error.address).toBe(address)
    expect(error.message).toContain(reason)
    const { tasks, end } = await linux.taskList()
    expect(end).toBe('fault')
    expect(tasks.length).toBeGreaterThan(2)
  })

  it('a name without an end has the length of its field', async () => {
    const linux = await attachedTo((guest) => {
      guest.lies.endlessString('comm')
      guest.lies.endlessString('module-name')
      guest.lies.endlessString('kobject-name')
    })
    expect((await linux.tasks())[0]?.comm).toMatch(/^A{15,16}$/)
    expect((await linux.modules()).at(-1)?.name).toMatch(/^A{55,56}$/)
  })
})

describe('a guest whose page tables lie', () => {
  it('tables that point at themselves end an enumeration at its limit, at once', async () => {
    const guest = small()
    guest.lies.selfPageTables()
    const { memory } = guest.vm()
    let start = 0xff00_0000_0000_0000n
    for (let calls = 0; calls < 3; calls++) {
      const request = { space: guest.space, start, end: 1n << 64n, limit: 1000 }
      const result = await memory?.pages(request)
      expect(result?.end).toBe('limit')
      expect(result?.next).toBeGreaterThan(start)
      start = result?.next ?? 0n
    }
    const tasks = await (await Linux.attach(guest.vm())).tasks()
    expect(tasks).toHaveLength(guest.tasks().filter(({ pid, tgid }) => pid === tgid).length)
  })

  it.each([
    ['not-present', (guest: SyntheticGuest, at: bigint) => guest.lies.unmap(at)],
    ['reserved-bit', (guest: SyntheticGuest, at: bigint) => guest.lies.reservedBit(at)],
    ['outside-ram', (guest: SyntheticGuest, at: bigint) => guest.lies.outsideRam(at)],
  ] as const)('%s is a fault with its address', async (reason, lie) => {
    const guest = small()
    const at = guest.task(1).address
    lie(guest, at)
    const [read] = (await guest.vm().memory?.read([{ space: guest.space, at, length: 8 }])) ?? []
    expect(read?.faults).toMatchObject([{ reason, address: at }])
    const linux = await failure(Linux.attach(guest.vm()).then((attached) => attached.tasks()))
    expect(['ERR_CLOUDAPP_GUEST_CORRUPT', 'ERR_CLOUDAPP_PROFILE']).toContain(linux.code)
  })
})

describe('a guest that is not what attaching needs', () => {
  it('truncated RAM gives an error that says what is missing', async () => {
    const guest = small({ kaslr: false })
    guest.lies.truncate(3 << 20)
    const error = await failure(Linux.attach(guest.vm()))
    expect(error.code).toBe('ERR_CLOUDAPP_PROFILE')
    expect(error.details?.part).toBeTypeOf('string')
  })

  it('RAM cut behind the kernel leaves faults, not rubbish', async () => {
    const guest = small({ kaslr: false })
    guest.lies.truncate(9 << 20)
    const error = await failure(Linux.attach(guest.vm()).then((linux) => linux.tasks()))
    expect(['ERR_CLOUDAPP_GUEST_CORRUPT', 'ERR_CLOUDAPP_PROFILE']).toContain(error.code)
  })

  it.each(['strings', 'types', 'names', 'members', 'length'] as const)('BTF with wild %s is refused', async (what) => {
    const guest = small()
    guest.lies.wildBtf(what)
    const error = await failure(Linux.attach(guest.vm()).then((linux) => linux.tasks()))
    expect(error.code).toBe('ERR_CLOUDAPP_PROFILE')
  })

  it.each(['kallsyms_names', 'kallsyms_token_table', 'kallsyms_token_index', 'kallsyms_offsets', 'kallsyms_num_syms'])(
    'a wild %s is refused',
    async (table) => {
      const guest = small()
      guest.lies.wildKallsyms(table)
      const error = await failure(Linux.attach(guest.vm()))
      expect(error.code).toBe('ERR_CLOUDAPP_PROFILE')
    },
  )

  it('a kernel without BTF says so', async () => {
    const error = await failure(Linux.attach(small({ btf: false }).vm()))
    expect(error.code).toBe('ERR_CLOUDAPP_PROFILE')
    expect(error.message).toMatch(/BTF/)
  })

  it('a kernel without VMCOREINFO is found by the shape of its tables', async () => {
    for (const guest of [small({ vmcoreinfo: false }), small({ seed: 2 })]) {
      guest.lies.eraseVmcoreinfo()
      const linux = await Linux.attach(guest.vm())
      expect(linux.release).toBe(guest.release)
      expect((await linux.tasks()).length).toBeGreaterThan(10)
    }
  })
})
