import { randomUUID } from 'node:crypto'
import { beforeAll, describe, expect, it } from 'vitest'
import { kernel, rootkit, rootkitParameters } from '../lib/index.js'
import { APP, killTogether, sharedXen, showConsoles, verbose, type XenGuest, type XenHost } from './lib/index.js'

interface Task {
  pid: number
  ppid: number
  uid: number
  comm: string
  kernelThread: boolean
}

interface Seen {
  identity: { name: string; uuid: string; bootNonce: string }
  release: string
  cpus: number
  levels: number
  tasks: Task[]
  modules: { name: string }[]
  report: {
    hits: { kind: string; evidence: { process?: { pid: number } } }[]
    checks: { name: string; done: boolean }[]
  }
  vcpus: { index: number; lstar: string; cr3: string; idtBase: string }[]
}

const CLOUDAPP = 'node_modules/@cloudapp/sdk/dist/cli/main.js'

let xen: XenHost
let client: XenGuest

beforeAll(async () => {
  xen = await sharedXen()
  const files = { '/shade.ko': await rootkit(await kernel('6.1'), verbose) }
  client = await xen.createGuest({ name: 'client', kind: 'pvh', cpus: 2, modules: ['dummy'], files })
}, 900_000)
showConsoles()

const attach = async (uri: string): Promise<Seen> =>
  JSON.parse((await xen.dom0.node(['attach.mjs', uri], { timeoutMs: 300_000 })).stdout)

/** What the guest itself says runs in it. */
async function processes(): Promise<Map<number, Omit<Task, 'pid'>>> {
  const { stdout } = await client.run(`cat /proc/[0-9]*/status 2>/dev/null | awk '
    /^Name:/ { name = substr($0, 7) } /^Pid:/ { pid = $2 } /^PPid:/ { ppid = $2 } /^Uid:/ { uid = $2 }
    /^Threads:/ { print pid, ppid, uid, name }'`)
  const rows = stdout
    .trim()
    .split('\n')
    .map((line) => line.split(' '))
  return new Map(
    rows.map(([pid, ppid, uid, ...comm]) => [
      Number(pid),
      { ppid: Number(ppid), uid: Number(uid), comm: comm.join(' '), kernelThread: ppid === '2' || pid === '2' },
    ]),
  )
}

/** As `xl list` has it: running, blocked or paused. */
const state = async (name: string): Promise<string> =>
  (await xen.dom0.run(`xl list ${name} | tail -n 1 | awk '{ print $5 }'`)).stdout.trim()

/** Waits until a program in the background has said a word. */
const logged = (log: string, word: string): Promise<unknown> => {
  const wait = `until grep -q ${word} ${log}; do grep -q ^ended ${log} && exit 1; sleep 0.5; done`
  return xen.dom0.run(`timeout 120 sh -c '${wait}' || { cat ${log}; dmesg | tail -n 3; exit 1; }`, {
    timeoutMs: 150_000,
  })
}

/** Starts hold.ts in dom0 and waits until it is ready; its pid is in LOG.pid. */
async function background(log: string, args: readonly string[]): Promise<void> {
  const program = `echo $$ > ${log}.pid; cd ${APP}; exec node hold.mjs ${args.join(' ')}`
  await xen.dom0.run(`rm -f ${log}*; (sh -c '${program}'; echo "ended $?") > ${log} 2>&1 &`)
  await logged(log, 'ready')
}

it('has no XSM, as doctor says, and what set_target would give', async () => {
  const { stdout } = await xen.dom0.node([CLOUDAPP, 'doctor', '--json'])
  const xsm = JSON.parse(stdout).checks.find(({ name }: { name: string }) => name === 'xsm')
  expect(xsm).toMatchObject({ status: 'missing', found: expect.stringMatching(/without XSM.*set_target/) })
})

describe('xen:', () => {
  it('attaches with no configuration, and sees what the guest sees', async () => {
    const before = await processes()
    const seen = await attach('xen:client')
    const after = await processes()
    expect(seen).toMatchObject({ identity: { name: 'client', uuid: client.uuid }, release: xen.kernel.release })
    expect(seen).toMatchObject({ cpus: 2, levels: 4 })
    const mine = new Map(seen.tasks.map((task) => [task.pid, task]))
    let compared = 0
    for (const [pid, { comm, ...facts }] of after) {
      if (!before.has(pid)) continue
      const task = mine.get(pid)
      expect(task, `pid ${pid} (${comm})`).toMatchObject({ ...facts, comm: expect.anything() })
      if (facts.kernelThread) expect(comm.startsWith(task?.comm ?? '?'), `${comm} is ${task?.comm}`).toBe(true)
      else expect(task?.comm).toBe(comm)
      compared++
    }
    expect(compared).toBeGreaterThan(30)
    for (const pid of mine.keys()) expect(before.has(pid) || after.has(pid), `pid ${pid}`).toBe(true)
    expect(seen.modules.map(({ name }) => name)).toEqual(['dummy'])
    expect(seen.report.checks.filter(({ done }) => !done)).toEqual([])
    expect(seen.report.hits).toEqual([])
    // The registers are the guest's: its own name for where SYSCALL enters.
    const { stdout } = await client.run('grep -w entry_SYSCALL_64 /proc/kallsyms')
    expect(seen.vcpus.map(({ index, lstar }) => ({ index, lstar }))).toEqual(
      [0, 1].map((index) => ({ index, lstar: `0x${stdout.split(' ')[0]}` })),
    )
  })

  it('reads physical memory with few mappings as with many, and nothing outside of it', async () => {
    await client.run('dd if=/dev/urandom of=/tmp/page bs=4096 count=1 2>/dev/null')
    const { stdout } = await client.run(
      `sha256sum < /tmp/page | cut -d' ' -f1; head -c 32 /tmp/page | hexdump -v -e '1/1 "%02x"'`,
    )
    const [digest, pattern = ''] = stdout.split('\n')
    expect(pattern).toHaveLength(64)
    const said = JSON.parse((await xen.dom0.node(['memory.mjs', 'client', pattern], { timeoutMs: 300_000 })).stdout)
    expect(said).toMatchObject({ eviction: true, before: 16, after: 'ERR_CLOUDAPP_REVOKED', consistent: true })
    expect(said.digests).toContain(digest)
    expect(said.digests.filter((_: string, i: number) => i % 2 === 0)).toEqual(
      said.digests.filter((_: string, i: number) => i % 2 === 1),
    )
    expect(said.faults).toEqual(['outside-ram', 'outside-ram', 'outside-ram'])
  })

  it('does not leave the client paused when the service domain is killed', async () => {
    const hold = async (log: string): Promise<string> => {
      await background(log, ['client', 'pause'])
      return (await xen.dom0.run(`cat ${log}.pid`)).stdout.trim()
    }
    const gone = (pid: string): string => `kill -KILL ${pid}; while [ -e /proc/${pid}/stat ]; do sleep 0.1; done`
    const runs = `timeout 60 sh -c "while xl list client | tail -n 1 | awk '{ print \\$5 }' | grep -q p; do sleep 0.2; done"`
    expect(await state('client')).not.toContain('p')
    const first = await hold('/tmp/first')
    expect(await state('client')).toContain('p')
    await xen.dom0.run(`${gone(first)}; ${runs}`, { timeoutMs: 90_000 })
    await client.run('true')

    // What somebody else has paused stays so.
    await xen.dom0.run('xl pause client')
    const second = await hold('/tmp/second')
    await xen.dom0.run(`${gone(second)}; while pgrep -f ca_xen_pause > /dev/null; do sleep 0.1; done`)
    expect(await state('client')).toContain('p')
    await xen.dom0.run(`xl unpause client; ${runs}`, { timeoutMs: 90_000 })
    await client.run('true')
  })

  it('lets the client go on when all that held it were killed at once, by who comes next', async () => {
    const recover = async () =>
      JSON.parse((await xen.dom0.node([CLOUDAPP, 'vmi', 'recover', '--json'], { timeoutMs: 120_000 })).stdout)
    await background('/tmp/third', ['client', 'pause'])
    // Of the living nothing is undone.
    expect(await recover()).toEqual([])
    expect(await state('client')).toContain('p')
    await killTogether(xen, '$(cat /tmp/third.pid)')
    expect(await state('client')).toContain('p')
    expect(await recover()).toEqual([{ source: `xen:${client.domid}`, breakpoints: 0, events: false, pauses: 1 }])
    expect(await state('client')).not.toContain('p')
    await client.run('true')
    expect(await recover()).toEqual([])
  })

  it('finds the rootkit', async () => {
    await client.run('(while true; do sleep 1; done) & echo $! > /tmp/pid')
    const pid = Number((await client.run('cat /tmp/pid')).stdout)
    const parameters = rootkitParameters({ hidePids: [pid], hookFtrace: true, hookPatch: true, hideModule: true })
    await client.run(`insmod /shade.ko ${parameters}`)
    expect((await client.run(`ps -o pid | grep -wc ${pid}; lsmod | grep -c shade`, { check: false })).stdout).toBe(
      '0\n0\n',
    )
    const { report } = await attach(`xen:${client.uuid}`)
    expect(new Set(report.hits.map(({ kind }) => kind))).toEqual(
      new Set(['hidden-process', 'hidden-module', 'diverted-syscall']),
    )
    const hidden = report.hits.filter(({ kind }) => kind === 'hidden-process')
    expect(hidden.map(({ evidence }) => evidence.process?.pid)).toEqual([pid])
  })

  it('says what a PV guest and a missing one lack', async () => {
    const pv = await xen.createGuest({ name: 'older', kind: 'pv' })
    expect((await pv.run('cat /sys/hypervisor/guest_type')).stdout).toBe('PV\n')
    const { stdout } = await xen.dom0.node(['refuse.mjs', 'xen:older', 'xen:nobody', 'xen:4242'])
    const lines = stdout.trim().split('\n')
    expect(lines[0]).toMatch(/^ERR_CLOUDAPP_UNSUPPORTED: domain \d+ is a PV guest: .*type="pvh"/)
    expect(lines[1]).toMatch(/^ERR_CLOUDAPP_NOT_FOUND: there is no domain 'nobody'; running: .*client \(\d+\)/)
    expect(lines[2]).toMatch(/^ERR_CLOUDAPP_NOT_FOUND/)
    await pv.destroy()
  })

  it('is not taken by a broker for who had its number before, nor for itself when it was started anew', async () => {
    const uuid = randomUUID()
    const create = () => xen.createGuest({ name: 'again', kind: 'pvh', memory: '160M', config: `uuid = "${uuid}"` })
    const first = await create()
    const log = '/tmp/restarted'
    const line = `node restarted.mjs ${uuid} ${first.domid} /tmp/started-anew`
    await xen.dom0.run(`rm -f /tmp/started-anew; cd /app; (${line} > ${log} 2>&1 &)`)
    await logged(log, 'another')
    await first.destroy()
    const second = await create()
    await xen.dom0.run('touch /tmp/started-anew')
    await logged(log, 'done')
    expect((await xen.dom0.run(`cat ${log}`)).stdout.split('\n')).toEqual([
      'read 8 bytes',
      expect.stringMatching(/^ERR_CLOUDAPP_NOT_FOUND: gone is not where the register says: another VM is there/),
      expect.stringMatching(/^ERR_CLOUDAPP_SOURCE: web was started anew/),
      'read 8 bytes',
      'done',
      '',
    ])
    await second.destroy()
  })

  it('ends with its domain, and lets go of its memory', async () => {
    const log = '/tmp/watch'
    await background(log, [String(client.domid), 'watch'])
    await client.destroy()
    await logged(log, 'ERR_CLOUDAPP_SOURCE')
    // A domain whose pages are still mapped somewhere stays in the list.
    await xen.dom0.run(`timeout 60 sh -c 'while xl list ${client.domid} 2>/dev/null; do sleep 0.2; done'`, {
      timeoutMs: 90_000,
    })
  })
})
