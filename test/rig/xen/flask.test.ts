import { readFile } from 'node:fs/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { buildLabelOf, labelOf } from '../../../src/capabilities/flask/index.js'
import { run } from '../lib/process.js'
import { Customer, type PlannedDomain } from './lib/customer.js'
import { bootXsm, watchForLost, type XenGuest, type XenHost, xsmXen } from './lib/index.js'
import { guestProgram } from './lib/probe.js'

// A Xen with XSM. The clients are PVH domains, the service domains PV domains; between them there is Xen and nobody else.

const progress = process.env.CLOUDAPP_RIG_VERBOSE
  ? (message: string): void => void process.stderr.write(`${message}\n`)
  : undefined

const uuid = (n: number): string => `00000000-0000-4000-8000-00000000000${n}`
const OPEN: readonly PlannedDomain[] = [
  { name: 'ids', uuid: uuid(1), service: true },
  { name: 'rogue', uuid: uuid(2), service: true },
  { name: 'web', uuid: uuid(3) },
  { name: 'other', uuid: uuid(4) },
]
const PRIVATE: readonly PlannedDomain[] = [
  { name: 'vault', uuid: uuid(5) },
  { name: 'guard', uuid: uuid(6), service: true },
]
/** 16 MiB: where the clients' kernels lie. */
const FRAME = '0x1000'
/** As long as a slow machine may take for all of it. */
const HOUR = 3_600_000

let xen: XenHost
let customer: Customer
let ids: XenGuest
let rogue: XenGuest
let web: XenGuest
let other: XenGuest

/** Loads xen-privcmd so that what it may do is Xen's to say. */
const SERVICE = { kind: 'pv', modules: ['xen-evtchn'], extraModules: ['xen-privcmd'] } as const
const UNRESTRICTED = 'insmod /lib/rig/xen_privcmd.ko unrestricted=1'

async function create(domain: PlannedDomain, more: { node?: boolean; private?: boolean } = {}): Promise<XenGuest> {
  const lines = [`uuid = "${domain.uuid}"`, `seclabel = "${labelOf(domain.uuid)}"`]
  if (more.private) lines.push(`init_seclabel = "${buildLabelOf(domain.uuid)}"`)
  const files = { '/map': await guestProgram('map', { progress }) }
  return xen.createGuest({
    name: domain.name,
    config: lines.join('\n'),
    ...(more.node ? { node: true } : { memory: '160M' }),
    ...(domain.service ? { ...SERVICE, setup: UNRESTRICTED, files } : { kind: 'pvh' }),
  })
}

/** What a program that is not ours gets of a client's page. */
const map = async (service: XenGuest, client: XenGuest, mode = ''): Promise<string> =>
  (await service.run(`/map ${client.domid} ${FRAME} ${mode}`)).stdout.trim()

const EACCES = 'refused 13'
/** 2026-11-26 or whatever the control domain thinks: expiries are by its clock. */
const now = async (): Promise<number> => Number((await xen.dom0.run('date +%s')).stdout) * 1000

/** How far a program that holds a mapping has come. */
const held = async (service: XenGuest): Promise<number> =>
  Number((await service.run('tail -n 1 /tmp/held')).stdout.split(' ')[1])

async function holds(service: XenGuest, client: XenGuest): Promise<void> {
  await service.run(
    `(/map ${client.domid} ${FRAME} hold > /tmp/held 2>&1 &); until grep -q held /tmp/held; do sleep 0.1; done`,
  )
}

const running = async (name: string): Promise<boolean> =>
  (await xen.dom0.run(`xl domid ${name}`, { check: false })).status === 0

const within = (seconds: number, script: string): Promise<unknown> =>
  xen.dom0.run(`timeout ${seconds} sh -c '${script}'`, { timeoutMs: (seconds + 30) * 1000 })

beforeAll(async () => {
  xen = await bootXsm({ progress })
  const { source } = await xsmXen({ progress })
  await xen.dom0.push('/tmp/xen.tar', Buffer.from(await tar(source), 'base64'))
  await xen.dom0.run('mkdir -p /usr/src/xen && tar -C /usr/src/xen -xzf /tmp/xen.tar')
  customer = await Customer.open(xen.dom0, [...OPEN, ...PRIVATE], { web: 'alice', other: 'bob', vault: 'alice' })
}, 1_800_000)
afterAll(async () => xen?.close())
watchForLost()

const tar = (folder: string): Promise<string> => run('sh', ['-c', 'tar -C "$0" -cz . | base64 -w0', folder])

it('is what doctor says it is', async () => {
  const { checks } = JSON.parse((await customer.cloudapp('doctor --json')).stdout)
  expect(checks.find(({ name }: { name: string }) => name === 'xsm')).toMatchObject({ status: 'ok' })
})

describe('direct access', () => {
  it('loads a policy that allows nothing yet, and says under which labels to create the domains', async () => {
    customer.delegate({
      service: 'ids',
      vm: 'web',
      rights: ['memory.read', 'events.syscall'],
      expires: (await now()) + HOUR,
    })
    const { stdout } = await customer.flask(
      'apply',
      OPEN.map(({ name }) => name),
    )
    const said = JSON.parse(stdout)
    expect(said).toMatchObject({ loaded: true, locked: false, leases: [] })
    expect(said.waiting).toHaveLength(4)
    expect(said.waiting[0]).toMatchObject({ name: 'ids', seclabel: labelOf(uuid(1)) })
    const [first, second, third, fourth] = OPEN as [PlannedDomain, PlannedDomain, PlannedDomain, PlannedDomain]
    web = await create(third)
    other = await create(fourth)
    ids = await create(first, { node: true })
    rogue = await create(second)
    // Labelled, and not yet leased: Xen says no.
    expect(await map(ids, web)).toBe(EACCES)
  })

  it('refuses a token that Xen can not enforce, by the name of its limit', async () => {
    const kept = customer.delegations
    customer.delegate({
      service: 'rogue',
      vm: 'other',
      rights: ['memory.read'],
      expires: (await now()) + HOUR,
      uses: 3,
    })
    const { status, stdout } = await customer.flask('compile', undefined, false)
    expect(status).toBe(1)
    expect(JSON.parse(stdout)).toMatchObject({
      error: { code: 'ERR_CLOUDAPP_UNSUPPORTED', details: { dimensions: ['uses'] } },
    })
    customer.delegations = kept
  })

  /** ms the command that begins a lease took. */
  let applied = 0
  let open = ''
  let block = ''

  it('lets the service domain read the client, and nothing else of it, and no other domain anything', async () => {
    customer.forget()
    block = customer.delegate({
      service: 'ids',
      vm: 'web',
      rights: ['memory.read', 'events.syscall'],
      expires: (await now()) + HOUR,
    })
    const began = performance.now()
    const { leases } = JSON.parse(
      (
        await customer.flask(
          'apply',
          OPEN.map(({ name }) => name),
        )
      ).stdout,
    )
    applied = Math.ceil(performance.now() - began)
    expect(leases).toMatchObject([
      { service: 'ids', rights: ['memory.read'], open: { domid: web.domid, write: false } },
    ])
    open = JSON.stringify(leases[0].open)
    expect(await map(ids, web)).toMatch(/^mapped [0-9a-f]{16}$/)
    expect(await map(ids, web, 'write')).toBe(EACCES)
    // A client of another owner, and another service domain, are out of reach.
    expect(await map(ids, other)).toBe(EACCES)
    expect(await map(rogue, web)).toBe(EACCES)
    expect(await map(rogue, other)).toBe(EACCES)
    const lines = (await ids.node(['direct.mjs', open, 'attach'], { timeoutMs: 400_000 })).stdout.trim().split('\n')
    const [seen, linux] = lines.map((line) => JSON.parse(line))
    expect(seen).toMatchObject({ opened: true, writes: false, pauses: false })
    expect(linux.release).toBe(xen.kernel.release)
    expect(linux.tasks).toContain('1 init')
    // What it was not given it is refused by Xen, not by our library.
    const more = JSON.stringify({ ...leases[0].open, registers: true })
    expect(JSON.parse((await ids.node(['direct.mjs', more])).stdout)).toMatchObject({
      opened: true,
      registers: 'ERR_CLOUDAPP_UNSUPPORTED',
    })
    const writes = JSON.stringify({ ...leases[0].open, write: true })
    expect(JSON.parse((await ids.node(['direct.mjs', writes])).stdout)).toMatchObject({
      opened: false,
      error: 'ERR_CLOUDAPP_UNSUPPORTED',
    })
  })

  it('shows right by right what Xen enforces and what only the broker does', async () => {
    const { stdout } = await customer.flask(
      'status',
      OPEN.map(({ name }) => name),
    )
    const said = JSON.parse(stdout)
    expect(said).toMatchObject({ mode: 'enforcing', locked: false, supervisor: true })
    expect(said.rights).toMatchObject([
      { service: 'ids', client: 'web', right: 'memory.read', by: 'hypervisor', on: true },
      { service: 'ids', client: 'web', right: 'events.syscall', by: 'broker' },
    ])
  })

  it('revokes: nothing new is mapped, our library unmaps, and who does not cooperate keeps what it has', async () => {
    await holds(ids, web)
    const hold = `(cd /app; node direct.mjs '${open}' hold > /tmp/hold 2>&1 &)`
    await ids.run(`${hold}; timeout 200 sh -c 'until grep -q opened /tmp/hold; do sleep 0.3; done'; cat /tmp/hold`, {
      timeoutMs: 230_000,
    })
    expect(await customer.revoke('alice', block)).toMatchObject({ direct: 1, destroyed: [] })
    expect(await map(ids, web)).toBe(EACCES)
    const ended = `timeout 100 sh -c 'until grep -q ended /tmp/hold; do sleep 0.3; done'; cat /tmp/hold`
    const lines = (await ids.run(ended, { timeoutMs: 120_000 })).stdout.trim().split('\n')
    const [before, after] = lines.map((line) => JSON.parse(line))
    expect(before.mapped).toBeGreaterThan(0)
    expect(after).toEqual({ ended: 'ERR_CLOUDAPP_REVOKED', mapped: 0, read: expect.stringMatching(/REVOKED|CLOSED/) })
    // This one has the page still: Xen takes back no mapping that exists.
    const first = await held(ids)
    await ids.run(`until [ "$(tail -n 1 /tmp/held | cut -d' ' -f2)" -gt ${first + 5} ]; do sleep 0.2; done`)
    expect((await ids.run('grep -c refused /tmp/held', { check: false })).stdout).toBe('0\n')
  })

  it('revokes hard: the service domain is destroyed, and what it held with it', async () => {
    customer.forget()
    const hard = customer.delegate({
      service: 'rogue',
      vm: 'other',
      rights: ['memory.read'],
      expires: (await now()) + HOUR,
    })
    await customer.flask(
      'apply',
      OPEN.map(({ name }) => name),
    )
    await holds(rogue, other)
    expect(await customer.revoke('bob', hard, true)).toMatchObject({ direct: 1, destroyed: ['rogue'] })
    expect(await running('rogue')).toBe(false)
    expect(await customer.audit()).toMatch(/host\.destroy/)
    // Nobody holds the client's memory any more: it goes at once when it ends. A page still mapped would keep it in the list.
    await other.destroy()
    await within(60, `while xl list ${other.domid} 2>/dev/null; do sleep 0.2; done`)
  })

  it('ends a lease at its time when the broker is dead', async () => {
    customer.forget()
    // Long enough for the command that begins it, which takes seconds or, on a busy machine, minutes.
    const expires = (await now()) + 20_000 + 2 * applied
    customer.delegate({ service: 'ids', vm: 'web', rights: ['memory.read'], expires, end: 'destroy' })
    const names = OPEN.map(({ name }) => name)
    await customer.flask('apply', names)
    expect(await map(ids, web)).toMatch(/^mapped/)
    await xen.dom0.run(
      'kill -KILL $(cat /run/broker.pid); while [ -e /proc/$(cat /run/broker.pid)/stat ]; do sleep 0.1; done',
    )
    expect(await map(ids, web)).toMatch(/^mapped/)
    await within(900, 'while xl domid ids; do sleep 0.5; done')
    expect(await now()).toBeGreaterThanOrEqual(expires)
    const { stdout } = await xen.dom0.run('flask-get-bool -a | grep memory_read')
    expect(stdout.split('\n').filter((line) => line.endsWith(': 1'))).toEqual([])
    await customer.restart()
  })
})

describe('a private client', () => {
  const REFUSAL = /Permission denied|Failed to save|failed/
  /** Ways of dom0's into a client; the first leaves /tmp/core, as far as it came. */
  const ways = ({ domid }: XenGuest): string[] => [
    `timeout 20 xl dump-core ${domid} /tmp/core`,
    `timeout 60 xl save -c ${domid} /tmp/save; s=$?; rm -f /tmp/save; exit $s`,
    `/usr/lib/xen-4.17/bin/xenctx ${domid} 0`,
  ]

  const names = PRIVATE.map(({ name }) => name)
  let vault: XenGuest
  let guard: XenGuest
  let block = ''

  it('is not made while another domain runs under a label that the policy would not have', async () => {
    customer.forget()
    const { status, stdout } = await customer.flask('apply --private', names, false)
    expect(status).toBe(1)
    expect(JSON.parse(stdout)).toMatchObject({
      error: { code: 'ERR_CLOUDAPP_INVALID_ARGUMENT', details: { domains: ['web'] } },
    })
    // What is refused below works with a client that is not private.
    for (const way of ways(web)) {
      const { stdout, stderr } = await xen.dom0.run(way, { check: false })
      expect(`${stdout}${stderr}`, way).not.toMatch(REFUSAL)
    }
    expect(Number((await xen.dom0.run('stat -c %s /tmp/core && rm /tmp/core')).stdout)).toBeGreaterThan(1_000_000)
    await web.destroy()
  })

  it('is closed to the control domain, and open to its service domain', async () => {
    customer.forget()
    block = customer.delegate({
      service: 'guard',
      vm: 'vault',
      rights: ['memory.read', 'vcpu.read'],
      expires: (await now()) + HOUR,
    })
    await customer.flask('apply --private', names)
    const [client, service] = PRIVATE as [PlannedDomain, PlannedDomain]
    vault = await create(client, { private: true })
    guard = await create(service, { private: true })
    await vault.run('true')
    await customer.flask('apply --private', names)
    expect(await map(guard, vault)).toMatch(/^mapped/)
    for (const way of ways(vault)) {
      const { stdout, stderr } = await xen.dom0.run(way, { check: false })
      expect(`${stdout}${stderr}`, way).toMatch(REFUSAL)
    }
    expect((await xen.dom0.run('stat -c %s /tmp/core')).stdout).toBe('0\n')
    const { stdout } = await xen.dom0.node(['refuse.mjs', `xen:${vault.domid}`, `xen:${guard.domid}`])
    expect(stdout).toMatch(/^ERR_CLOUDAPP_UNSUPPORTED: Xen does not let this domain/)
    await vault.run('true')
  })

  it('stays so: the control domain can not load a policy, switch enforcement off, or build a second service domain', async () => {
    const { leases, locked } = JSON.parse((await customer.flask('apply --private --locked', names)).stdout)
    expect(locked).toBe(true)
    expect(leases).toMatchObject([{ service: 'guard', rights: ['memory.read', 'vcpu.read'] }])
    expect(await map(guard, vault)).toMatch(/^mapped/)
    const refused = async (line: string): Promise<void> => {
      const { status, stdout, stderr } = await xen.dom0.run(line, { check: false })
      expect(status, `${line}: ${stdout}${stderr}`).not.toBe(0)
      expect(`${stdout}${stderr}`, line).toMatch(/Permission denied|not permitted|error occurred/)
    }
    const { policy } = await xsmXen({ progress })
    await xen.dom0.push('/tmp/base-policy', await readFile(policy))
    await refused('xl loadpolicy /tmp/base-policy')
    await refused('xl setenforce 0')
    await refused('xl debug-keys q')
    expect((await xen.dom0.run('xl getenforce', { check: false })).stdout).toBe('Enforcing\n')
    // A domain of its own with the service domain's label would have its rights.
    await xen.dom0.run(`sed 's/guard/fake/; /uuid/d' /tmp/guard.cfg > /tmp/fake.cfg`)
    await refused('xl create /tmp/fake.cfg')
  })

  it('is taken back by the one switch that is left, for good', async () => {
    // Two leases: of the right's own switch, and since the lock of the one for all.
    expect(await customer.revoke('alice', block)).toMatchObject({ direct: 2, destroyed: [] })
    expect(await map(guard, vault)).toBe(EACCES)
    const { status, stderr } = await xen.dom0.run('flask-set-bool ca_live 1', { check: false })
    expect(status).not.toBe(0)
    expect(stderr).toMatch(/Permission denied/)
    expect(await map(guard, vault)).toBe(EACCES)
    await vault.run('true')
    await xen.dom0.run('xl destroy guard; xl destroy vault')
  })
})
