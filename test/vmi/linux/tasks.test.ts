import { describe, expect, it } from 'vitest'
import { listTasks, type TaskOptions } from '../../../src/vmi/linux/tasks.js'
import { DIRECT, TinyKernel } from './ram.js'

const INIT = 0x1_0000
const FIELDS = {
  'task_struct.tasks': [0x20, 16],
  'task_struct.pid': [0x40, 4],
  'task_struct.tgid': [0x44, 4],
  'task_struct.flags': [0x48, 4],
  'task_struct.comm': [0x50, 16],
  'task_struct.real_parent': [0x60, 8],
  'task_struct.cred': [0x68, 8],
  'task_struct.mm': [0x70, 8],
  'task_struct.signal': [0x78, 8],
  'task_struct.thread_node': [0x80, 16],
  'signal_struct.thread_head': [0x10, 16],
  'cred.uid': [8, 4],
  'mm_struct.pgd': [0x18, 8],
} as const

interface TaskSpec {
  at: number
  pid: number
  comm?: string
  kernel?: boolean
  threads?: { at: number; pid: number }[]
}

function guest(specs: readonly TaskSpec[], paused = true): TinyKernel {
  const kernel = TinyKernel.create({ init_task: INIT }, FIELDS, paused)
  const { ram } = kernel
  const write = (at: number, pid: number, tgid: number, comm: string, isKernel: boolean, signal: number) => {
    ram.writeInt32LE(pid, at + 0x40)
    ram.writeInt32LE(tgid, at + 0x44)
    ram.writeUInt32LE(isKernel ? 0x20_8040 : 0x40_0000, at + 0x48)
    ram.write(comm, at + 0x50, 16, 'utf8')
    kernel.pointer(at + 0x60, INIT)
    kernel.pointer(at + 0x68, 0x8000)
    kernel.pointer(at + 0x78, signal)
    if (!isKernel) kernel.pointer(at + 0x70, 0x9000)
  }
  ram.writeUInt32LE(1000, 0x8008)
  kernel.pointer(0x9018, 0x7000)
  write(INIT, 0, 0, 'swapper/0', true, 0x500)
  for (const { at, pid, comm, kernel: isKernel, threads = [] } of specs) {
    const signal = at + 0x400
    write(at, pid, pid, comm ?? `task-${pid}`, isKernel === true, signal)
    for (const thread of threads) write(thread.at, thread.pid, pid, `thread-${thread.pid}`, false, signal)
    kernel.ring(signal + 0x10, at + 0x80, ...threads.map((thread) => thread.at + 0x80))
  }
  kernel.ring(INIT + 0x20, ...specs.map(({ at }) => at + 0x20))
  return kernel
}

const three: TaskSpec[] = [
  { at: 0x2_0000, pid: 1, comm: 'init' },
  { at: 0x2_1000, pid: 2, comm: 'kthreadd', kernel: true },
  {
    at: 0x2_2000,
    pid: 7,
    threads: [
      { at: 0x2_3000, pid: 8 },
      { at: 0x2_4000, pid: 9 },
    ],
  },
]

const list = (kernel: TinyKernel, options: TaskOptions = {}) => listTasks(kernel, options, 'throw')

describe('tasks', () => {
  it('lists processes in the order of the kernel, without pid 0', async () => {
    const { tasks, end } = await list(guest(three))
    expect(end).toBe('complete')
    expect(tasks).toEqual([
      {
        pid: 1,
        tgid: 1,
        ppid: 0,
        comm: 'init',
        uid: 1000,
        kernelThread: false,
        task: DIRECT + 0x2_0000n,
        dtb: 0x7000n,
      },
      { pid: 2, tgid: 2, ppid: 0, comm: 'kthreadd', uid: 1000, kernelThread: true, task: DIRECT + 0x2_1000n, dtb: 0n },
      {
        pid: 7,
        tgid: 7,
        ppid: 0,
        comm: 'task-7',
        uid: 1000,
        kernelThread: false,
        task: DIRECT + 0x2_2000n,
        dtb: 0x7000n,
      },
    ])
  })

  it('adds threads behind their process', async () => {
    const { tasks } = await list(guest(three), { threads: true })
    expect(tasks.map(({ pid, tgid }) => [pid, tgid])).toEqual([
      [1, 1],
      [2, 2],
      [7, 7],
      [8, 7],
      [9, 7],
    ])
  })

  it('takes a name as it stands, whatever its bytes', async () => {
    const kernel = guest([{ at: 0x2_0000, pid: 1 }])
    Buffer.from([0x1b, 0x5b, 0x32, 0x4a, 0xff, 0xc3, 0xa9, ...Array(9).fill(0x61)]).copy(kernel.ram, 0x2_0050)
    const { tasks } = await list(kernel)
    expect(tasks[0]?.comm).toBe('\u001b[2J\ufffdéaaaaaaaaa')
  })

  it('reads null and wild pointers of a task as nothing', async () => {
    const kernel = guest(three)
    for (const at of [0x60, 0x68, 0x70]) kernel.pointer(0x2_0000 + at, 0xdead_beef_0000_0000n)
    const { tasks } = await list(kernel)
    expect(tasks[0]).toMatchObject({ pid: 1, ppid: 0, uid: 0, dtb: 0n })
    expect(tasks).toHaveLength(3)
  })

  it.each([
    [true, 'paused'],
    [false, 'running'],
  ])('names a list that returns into itself (%s: %s)', async (paused) => {
    const kernel = guest(three, paused)
    kernel.pointer(0x2_2020, 0x2_1020)
    await expect(list(kernel)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_GUEST_CORRUPT',
      message: expect.stringMatching(/task list returns into itself/),
      address: DIRECT + BigInt(INIT + 0x20),
    })
    const { tasks, end } = await listTasks(kernel, {}, 'report')
    expect(end).toBe('cycle')
    expect(tasks.map(({ pid }) => pid)).toEqual([1, 2, 7])
  })

  it('names the address a list leads to', async () => {
    const kernel = guest(three)
    kernel.pointer(0x2_1020, 0xffff_c900_0000_1000n)
    await expect(list(kernel)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_GUEST_CORRUPT' })
    const { tasks, end, fault } = await listTasks(kernel, {}, 'report')
    expect(end).toBe('fault')
    expect(fault?.address).toBe(0xffff_c900_0000_1000n)
    expect(tasks[0]?.pid).toBe(1)
  })

  it('ends at its limit', async () => {
    await expect(list(guest(three), { limit: 2 })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_LIMIT',
      details: { limit: 2 },
    })
    const { tasks, end } = await listTasks(guest(three), { limit: 2 }, 'report')
    expect([tasks.length, end]).toEqual([2, 'limit'])
  })

  it('reports a broken thread list', async () => {
    const kernel = guest(three)
    kernel.pointer(0x2_4080, 0x2_3080)
    await expect(list(kernel, { threads: true })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_GUEST_CORRUPT' })
    const { tasks, end } = await listTasks(kernel, { threads: true }, 'report')
    expect(end).toBe('cycle')
    expect(tasks.map(({ pid }) => pid)).toEqual([1, 2, 7, 8, 9])
  })

  it('walks a live list again before it calls it broken', async () => {
    const kernel = guest(three, false)
    kernel.pointer(0x2_2020, 0x2_1020)
    const { memory } = kernel
    let walks = 0
    const walk = memory.walk.bind(memory)
    Object.assign(memory, {
      walk: (plans: Parameters<typeof walk>[0]) => {
        // The element that broke the list is gone on the second look.
        if (++walks === 2) kernel.pointer(0x2_2020, INIT + 0x20)
        return walk(plans)
      },
    })
    expect((await list(kernel)).tasks).toHaveLength(3)
    expect(walks).toBe(2)
  })

  it('refuses options it does not know', async () => {
    await expect(list(guest(three), { thread: true } as TaskOptions)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_UNKNOWN_OPTION',
    })
    await expect(list(guest(three), { limit: 0 })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
  })

  it('needs its offsets', async () => {
    const kernel = TinyKernel.create({ init_task: INIT }, { 'task_struct.tasks': [0x20, 16] })
    await expect(list(kernel)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_PROFILE',
      details: { part: 'task_struct.pid' },
    })
  })
})
