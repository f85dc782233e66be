import { createHash } from 'node:crypto'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Linux } from '../../src/vmi/linux/linux.js'
import { makeKernelProfile } from '../../src/vmi/linux/make-profile.js'
import { KernelProfile } from '../../src/vmi/linux/profile.js'
import { PageFlags, virtualSpace } from '../../src/vmi/memory.js'
import { openVm } from '../../src/vmi/sources/open.js'
import { bootVm, cached, fileKey, type KernelName, projectRoot, run, type Vm } from './lib/index.js'

let scratch = ''
let threads = ''
beforeAll(async () => {
  scratch = mkdtempSync(path.join(tmpdir(), 'linux-attach-'))
  process.env.CLOUDAPP_CACHE = path.join(scratch, 'cache')
  const source = path.join(projectRoot, 'test/rig/guest/threads.c')
  const folder = await cached('threads', fileKey(source), async (into) => {
    await run('gcc', ['-static', '-O1', '-pthread', '-o', path.join(into, 'threads'), source])
  })
  threads = path.join(folder, 'threads')
})
afterAll(() => {
  delete process.env.CLOUDAPP_CACHE
  rmSync(scratch, { recursive: true, force: true })
})

interface Process {
  pid: number
  ppid: number
  uid: number
  threads: number
  comm: string
}

/** What the guest itself says runs in it: /proc, as `ps` reads it. A process that ends meanwhile may be missing. */
async function processes(vm: Vm): Promise<Map<number, Process>> {
  const { stdout } = await vm.guest.run(`cat /proc/[0-9]*/status 2>/dev/null | awk '
    /^Name:/ { name = substr($0, 7) } /^Pid:/ { pid = $2 } /^PPid:/ { ppid = $2 } /^Uid:/ { uid = $2 }
    /^Threads:/ { print pid, ppid, uid, $2, name }'`)
  const list = stdout
    .trim()
    .split('\n')
    .map((line) => {
      const [pid, ppid, uid, count, ...comm] = line.split(' ')
      return { pid: Number(pid), ppid: Number(ppid), uid: Number(uid), threads: Number(count), comm: comm.join(' ') }
    })
  return new Map(list.map((entry) => [entry.pid, entry]))
}

const KERNELS: [KernelName, string, 4 | 5][] = [
  ['6.1', 'max', 5],
  ['6.1', 'max,-la57', 4],
  ['6.12-bpo', 'max', 5],
  ['6.12-bpo', 'max,-la57', 4],
]

describe.each(KERNELS)('Linux %s on -cpu %s', (kernel, cpu, levels) => {
  let vm: Vm
  beforeAll(async () => {
    vm = await bootVm({
      kernel,
      cpu,
      cpus: 2,
      name: 'client',
      modules: ['dummy', 'loop'],
      files: { '/bin/threads': { content: readFileSync(threads), mode: 0o755 } },
    })
    await vm.guest.run('/bin/threads </dev/null >/dev/null 2>&1 & sleep 1')
  })
  afterAll(async () => vm?.close())

  it('lists what ps lists', async () => {
    await using source = await openVm(vm.uri)
    const linux = await Linux.attach(source)
    expect(linux.profile.boot.levels).toBe(levels)
    expect(linux.cpus).toBe(2)
    expect(linux.release).toBe((await vm.guest.run('uname -r')).stdout.trim())
    const before = await processes(vm)
    const tasks = await linux.tasks()
    const all = await linux.tasks({ threads: true })
    const after = await processes(vm)
    const mine = new Map(tasks.map((task) => [task.pid, task]))
    let compared = 0
    for (const [pid, guest] of after) {
      if (!before.has(pid)) continue
      const task = mine.get(pid)
      expect(task, `pid ${pid} (${guest.comm})`).toMatchObject({ pid, tgid: pid, ppid: guest.ppid, uid: guest.uid })
      // /proc shows kernel threads by a name longer than their comm, and workers with what they work on.
      if (task?.kernelThread) expect(guest.comm.startsWith(task.comm), `${guest.comm} is ${task.comm}`).toBe(true)
      else expect(task?.comm).toBe(guest.comm)
      expect(all.filter(({ tgid }) => tgid === pid)).toHaveLength(guest.threads)
      compared++
    }
    expect(compared).toBeGreaterThan(30)
    for (const pid of mine.keys()) expect(before.has(pid) || after.has(pid), `pid ${pid}`).toBe(true)
    expect(mine.has(0)).toBe(false)
    expect(mine.get(2)).toMatchObject({ comm: 'kthreadd', kernelThread: true, dtb: 0n })
  })

  it('knows names, user ids, threads and page tables', async () => {
    await using source = await openVm(vm.uri)
    const linux = await Linux.attach(source)
    const named = (await linux.tasks({ threads: true })).filter(({ uid }) => uid === 1234)
    expect(named.map(({ comm }) => comm)).toEqual(['manyé \u001b[2J', 'worker-0', 'worker-1', 'worker-2'])
    const [main] = named
    expect(new Set(named.map(({ tgid }) => tgid))).toEqual(new Set([main?.pid]))
    expect(new Set(named.map(({ dtb }) => dtb)).size).toBe(1)
    expect(main?.kernelThread).toBe(false)
    // Its page table holds the program: an ELF header where /proc says it starts.
    const maps = await vm.guest.run(`head -1 /proc/${main?.pid}/maps`)
    const at = BigInt(`0x${maps.stdout.split('-')[0]}`)
    const space = virtualSpace(main?.dtb ?? 0n, levels)
    const [head] = await linux.memory.read([{ space, at, length: 4 }])
    expect(Buffer.from(head?.bytes ?? []).toString('latin1')).toBe('\u007fELF')
    const pages = await linux.memory.pages({ space, start: at, end: at + 4096n, want: PageFlags.User, limit: 1 })
    expect(pages.runs).toBe(1)
  })

  it('lists what lsmod lists', async () => {
    await using source = await openVm(vm.uri)
    const linux = await Linux.attach(source)
    const { stdout } = await vm.guest.run('cat /proc/modules')
    const modules = await linux.modules()
    const lines = modules.map(
      ({ name, size, refcount, base, state }) => `${name} ${size} ${refcount} ${state} 0x${base.toString(16)}`,
    )
    const expected = stdout
      .trim()
      .split('\n')
      .map((line) => line.split(' '))
      .map(([name, size, refs, , state, base]) => `${name} ${size} ${refs} ${state?.toLowerCase()} ${base}`)
    expect(lines).toEqual(expected)
    expect(modules.map(({ name }) => name)).toContain('dummy')
    // Symbols of modules, as the guest has them.
    const { stdout: symbol } = await vm.guest.run(`grep -m1 ' t dummy_xmit.*\\[dummy\\]' /proc/kallsyms`)
    const [address, , name] = symbol.trim().split(/\s+/)
    expect(await linux.symbolAt(BigInt(`0x${address}`) + 1n)).toEqual({ name, offset: 1n, module: 'dummy' })
  })

  it('has every symbol of /proc/kallsyms, in its order', async () => {
    await using source = await openVm(vm.uri)
    const linux = await Linux.attach(source)
    const { stdout } = await vm.guest.run(`grep -v '\\[' /proc/kallsyms | md5sum`, { timeoutMs: 300_000 })
    const hash = createHash('md5')
    for (const { address, type, name } of await linux.symbols())
      hash.update(`${address.toString(16).padStart(16, '0')} ${type} ${name}\n`)
    expect(hash.digest('hex')).toBe(stdout.split(' ')[0])
  })

  it('reads per-CPU variables', async () => {
    await using source = await openVm(vm.uri)
    const linux = await Linux.attach(source)
    const types = await linux.types()
    const queues = await linux.perCpuAll('runqueues')
    const numbers = queues.map((at) => linux.readU32(at + BigInt(types.offset('rq.cpu'))))
    expect(await Promise.all(numbers)).toEqual([0, 1])
  })

  it('finds the kernel again at another boot by its build id alone', async () => {
    await using source = await openVm(vm.uri)
    const parts = await makeKernelProfile(source.memory, { parser: '/nonexistent' })
    const cached = KernelProfile.open(parts.header)
    const { stdout } = await vm.guest.run(`grep -w init_task /proc/kallsyms`)
    expect(cached.symbol('init_task')).toBe(BigInt(`0x${stdout.split(' ')[0]}`))
    expect(cached.boot.levels).toBe(levels)
  })

  it('finds it without VMCOREINFO', async () => {
    await using source = await openVm(vm.uri)
    const known = KernelProfile.open((await source.kernel()).header)
    const ram = readFileSync(vm.ram)
    const file = openSync(vm.ram, 'r+')
    for (let at = ram.indexOf('OSRELEASE='); at >= 0; at = ram.indexOf('OSRELEASE=', at + 1)) writeSync(file, '!', at)
    closeSync(file)
    const parts = await makeKernelProfile(source.memory, { cache: false })
    const found = KernelProfile.open(parts.header)
    expect(found.boot).toEqual(known.boot)
    expect(found.image.symbols).toEqual(known.image.symbols)
  })
})
