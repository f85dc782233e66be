import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type SyntheticGuest, syntheticGuest } from '../../src/testing/index.js'
import { openVm, PHYSICAL } from '../../src/vmi/index.js'
import { cloudapp } from './cloudapp.js'

const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-vmi-'))
afterAll(() => rmSync(folder, { recursive: true }))

const source = `raw:${path.join(folder, 'ram')}`
const env = { CLOUDAPP_CACHE: path.join(folder, 'cache') }
let guest: SyntheticGuest

beforeAll(async () => {
  guest = syntheticGuest({ seed: 7 })
  guest.addTask({ pid: 4242, comm: 'a\u001b[31mb', uid: 1000 })
  await guest.write(path.join(folder, 'ram'))
})

const vmi = (...args: string[]) => cloudapp(['vmi', ...args, '--source', source], env)
async function json(...args: string[]) {
  const { code, stdout, stderr } = await vmi(...args, '--json')
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  return JSON.parse(stdout)
}

describe('cloudapp vmi', () => {
  it('tasks: one per process, in the stated shape', async () => {
    const tasks: { pid: number; task: string }[] = await json('tasks')
    const processes = guest.tasks().filter((task) => task.pid === task.tgid)
    expect(tasks.map((task) => task.pid).sort()).toEqual(processes.map((task) => task.pid).sort())
    const made = guest.task(4242)
    expect(tasks.find((task) => task.pid === 4242)).toEqual({
      pid: 4242,
      tgid: 4242,
      ppid: made.ppid,
      comm: 'a\u001b[31mb',
      uid: 1000,
      kernelThread: false,
      task: `0x${made.address.toString(16)}`,
      dtb: `0x${made.dtb.toString(16)}`,
    })
    expect(Object.keys(tasks[0] ?? {})).toEqual(['pid', 'tgid', 'ppid', 'comm', 'uid', 'kernelThread', 'task', 'dtb'])
  })

  it("tasks: a hostile name can not reach the terminal's controls, nor can it in JSON", async () => {
    const table = await vmi('tasks')
    expect(table.stdout).toContain('a\\x1b[31mb')
    expect(table.stdout + (await vmi('tasks', '--json')).stdout).not.toContain('\u001b')
  })

  it('tasks --threads adds threads', async () => {
    const all: { pid: number; tgid: number }[] = await json('tasks', '--threads')
    const processes: unknown[] = await json('tasks')
    expect(all.filter((task) => task.pid === task.tgid)).toHaveLength(processes.length)
    expect(all.length).toBe(guest.tasks().length)
  })

  it('info', async () => {
    expect(await json('info')).toMatchObject({
      release: guest.release,
      memoryEnd: `0x${guest.ram.length.toString(16)}`,
      text: { start: `0x${guest.symbol('_stext').toString(16)}` },
      pagingLevels: 5,
    })
  })

  it('modules', async () => {
    const modules: { name: string; base: string; size: number }[] = await json('modules')
    expect(modules.length).toBeGreaterThan(0)
    for (const module of modules) {
      expect(module).toMatchObject({
        name: expect.any(String),
        base: expect.stringMatching(/^0x/),
        size: expect.any(Number),
      })
    }
  })

  it('symbols by name and by pattern', async () => {
    const address = `0x${guest.symbol('init_task').toString(16)}`
    expect(await json('symbols', 'init_task')).toEqual([{ name: 'init_task', address, type: expect.any(String) }])
    const some: { name: string }[] = await json('symbols', '_?text')
    expect(some.map((symbol) => symbol.name)).toEqual(expect.arrayContaining(['_stext', '_etext']))
    expect(await vmi('symbols', 'init_tsak')).toMatchObject({ code: 1, stderr: expect.stringContaining("'init_task'") })
  })

  it('read: virtual and physical', async () => {
    const at = guest.symbol('init_task')
    const expected = Buffer.from(guest.bytes(at, 64)).toString('hex')
    const read = await json('read', '--address', `0x${at.toString(16)}`, '--length', '64')
    expect(read).toMatchObject({ address: `0x${at.toString(16)}`, length: 64, physical: false, bytes: expected })
    const physical = await json('read', '--address', '0x1000', '--length', '16', '--physical')
    expect(physical.bytes).toBe(Buffer.from(guest.ram.subarray(0x1000, 0x1010)).toString('hex'))
    const dump = await vmi('read', '--address', '0x1000', '--length', '17', '--physical')
    expect(dump.stdout.split('\n')[0]).toMatch(/^0000000000001000 {2}([0-9a-f]{2} ){8} ([0-9a-f]{2} ){8} \|.{16}\|$/)
    expect(dump.stdout.trim().split('\n')).toHaveLength(2)
  })

  it('read: an address that does not translate is explained', async () => {
    const { code, stderr } = await vmi('read', '--address', '0xffff', '--length', '8')
    expect(code).toBe(1)
    expect(stderr).toMatch(/about: address 0xffff/)
    expect(stderr).toMatch(/code: ERR_CLOUDAPP_TRANSLATION/)
  })

  it('dump: an ELF core with all of the memory, readable to its owner only', async () => {
    const file = path.join(folder, 'dump')
    const told = await json('dump', '--out', file)
    expect(told).toEqual({ file, bytes: guest.ram.length, seconds: expect.any(Number) })
    expect(statSync(file).mode & 0o777).toBe(0o600)
    await using vm = await openVm(`elf:${file}`)
    const pages = BigUint64Array.from({ length: guest.ram.length / 4096 }, (_, i) => BigInt(i * 4096))
    const [all] = await (vm.memory as NonNullable<typeof vm.memory>).read([
      { space: PHYSICAL, at: pages, length: 4096 },
    ])
    expect(all?.faults).toEqual([])
    expect(Buffer.compare(all?.bytes ?? Buffer.alloc(0), guest.ram)).toBe(0)
    const tasks = await cloudapp(['vmi', 'tasks', '--source', `elf:${file}`, '--json'], env)
    expect(JSON.parse(tasks.stdout)).toEqual(await json('tasks'))
    // What is there is not written over, and stays.
    const again = await vmi('dump', '--out', file)
    expect(again).toMatchObject({ code: 1, stderr: expect.stringContaining('EEXIST') })
    expect(statSync(file).size).toBeGreaterThan(guest.ram.length)
  })

  it('dump and events: what the source lacks is said', async () => {
    const file = path.join(folder, 'never')
    const paused = await vmi('dump', '--out', file, '--pause')
    expect(paused).toMatchObject({ code: 1, stderr: expect.stringContaining('can not be paused') })
    expect(existsSync(file)).toBe(false)
    const events = await vmi('events', '--trap', 'cr3')
    expect(events).toMatchObject({ code: 1, stderr: expect.stringMatching(/ERR_CLOUDAPP_UNSUPPORTED/) })
    const word = await vmi('events', '--trap', 'cr5')
    expect(word).toMatchObject({ code: 2, stderr: expect.stringContaining('breakpoint:SYMBOL') })
  })

  it('integrity: what is sound gives no hits, and every check is accounted for', async () => {
    const report = await json('integrity')
    expect(report.hits).toEqual([])
    for (const check of report.checks) expect(check.done || check.reason).toBeTruthy()
  })
})
