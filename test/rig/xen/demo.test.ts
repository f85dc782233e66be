import { randomBytes, randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { kernel, rootkit, rootkitParameters } from '../lib/index.js'
import {
  AFTER_LOSS,
  APP,
  remakeLost,
  running,
  sharedXen,
  showConsoles,
  VCHAN_MODULES,
  verbose,
  type XenGuest,
  type XenHost,
} from './lib/index.js'
import { Dom0Parties, UIDS } from './lib/parties.js'

let xen: XenHost
let web: XenGuest
let hidden: number

/** Creates the client, with the rootkit in it. */
async function createClient(): Promise<void> {
  const files = { '/shade.ko': await rootkit(await kernel('6.1'), verbose) }
  const node = { node: true, memory: '320M', modules: VCHAN_MODULES }
  web = await xen.createGuest({ name: 'web-1', kind: 'pvh', files, ...node })
  hidden = Number((await web.run('(while true; do sleep 1; done) > /dev/null 2>&1 & echo $!')).stdout)
  const parameters = rootkitParameters({ hidePids: [hidden], hookFtrace: true, hookPatch: true, hideModule: true })
  await web.run(`insmod /shade.ko ${parameters}`)
}

beforeAll(async () => {
  xen = await sharedXen()
  await createClient()
}, 900_000)
remakeLost(async () => {
  if (!(await web.lives())) await createClient()
})
afterAll(async () => {
  await xen.dom0.run('xl destroy ids-1; xl destroy web-1', { check: false })
})
showConsoles()

const RIGHTS = 'vm.info,memory.read,vcpu.read'

/** The customer's and the broker's side: keys, the register with the client in it, and the broker. Gives its socket. */
async function startBroker(parties: Dom0Parties, ...more: string[]): Promise<string> {
  const owner = await parties.json<{ publicKey: string }>('customer', ['keys', 'generate', 'owner.key'])
  await parties.json('root', ['keys', 'generate', 'broker.key'])
  const entry = { name: 'web-1', uuid: web.uuid, bootNonce: randomBytes(16).toString('hex'), owner: owner.publicKey }
  const register = { version: 1, vms: [{ ...entry, source: web.uri }] }
  await parties.write('root', 'register.json', JSON.stringify(register))
  const socket = parties.socket('broker')
  const files = { key: 'broker.key', register: 'register.json', state: 'state' }
  await parties.write('root', 'broker.json', JSON.stringify({ ...files, socket: [socket, ...more], mode: '0666' }))
  await parties.start('root', 'cloudapp', ['broker', '--config', 'broker.json'])
  await parties.said('cloudapp', 'broker.sock')
  return socket
}

/** What the rootkit must come to light by. */
const titles = () => [
  expect.stringMatching(/^Hidden kernel module shade/),
  expect.stringMatching(new RegExp(`^Hidden process ${hidden} \\(sh\\)`)),
  expect.stringMatching(/getdents64 is diverted by ftrace at \S+ to \[shade\]/),
  expect.stringMatching(/kill is diverted by a patched jump at \S+ to \[shade\]/),
]

describe('the main job, with the service domain as a process of dom0', AFTER_LOSS, () => {
  it('delegates, finds the rootkit through xen:, tells the client, and ends when it is revoked', async () => {
    await using parties = await Dom0Parties.install(xen)
    const socket = await startBroker(parties)
    const detector = await parties.json<{ publicKey: string }>('sd', ['keys', 'generate', 'sd.key'])

    // What the broker may, its clients may not: Xen's devices are closed to the detector's user.
    const direct = await parties.run('sd', 'refuse', [web.uri])
    expect(direct.stdout).toMatch(/^ERR_CLOUDAPP_UNSUPPORTED: /)

    // The publisher signs what it ships.
    await parties.json('sd', ['keys', 'generate', 'publisher.key'])
    await parties.run('sd', 'cloudapp', [
      'manifest',
      'sign',
      '/app/cloudapp.json',
      '--key',
      'publisher.key',
      '--out',
      'cloudapp.json',
    ])
    const endpoint = parties.socket('ids')
    await parties.start('sd', 'ids', [
      ...['--manifest', 'cloudapp.json', '--key', 'sd.key', '--broker', socket, '--listen', endpoint],
      ...['--store', 'findings.db', '--inbox', 'inbox', '--client', `${UIDS.client}=${web.uuid}`],
    ])
    await parties.said('ids', 'serves')
    const granted = await parties.json<{ token: string; blockId: string }>('customer', [
      ...['delegate', '--broker', socket, '--key', 'owner.key', '--vm', 'web-1', '--to', detector.publicKey],
      ...['--rights', RIGHTS, '--expires', '30m'],
    ])
    await parties.write('sd', 'inbox/web-1.token', `${granted.token}\n`)
    expect(await parties.said('ids', '^attached to web-1')).toContain(`Linux ${xen.kernel.release}`)

    const scan = ['--endpoint', endpoint, '--scan', '1', '--vm', 'web-1', '--json']
    const { stdout } = await parties.run('client', 'client', scan, { timeoutMs: 400_000 })
    const findings: { class_uid: number; finding_info: { title: string } }[] = JSON.parse(stdout)
    expect(findings.map(({ finding_info }) => finding_info.title).sort()).toEqual(titles())
    expect(findings.map(({ class_uid }) => class_uid)).toEqual([2004, 2004, 2004, 2004])

    const overreach = await parties.run('sd', 'probe', ['overreach', socket, 'sd.key', 'inbox/web-1.token'])
    expect(overreach.stdout).toBe('ERR_CLOUDAPP_DENIED\n')

    // Events go the same way, and end the same way.
    const watched = await parties.json<{ token: string; blockId: string }>('customer', [
      ...['delegate', '--broker', socket, '--key', 'owner.key', '--vm', 'web-1', '--to', detector.publicKey],
      ...['--rights', 'events.register', '--expires', '30m'],
    ])
    await parties.write('sd', 'events.token', `${watched.token}\n`)
    await parties.start('sd', 'stream', [socket, 'sd.key', 'events.token'])
    await parties.said('stream', 'seen two address spaces')
    await parties.run('customer', 'cloudapp', ['revoke', '--broker', socket, '--key', 'owner.key', watched.blockId])
    expect(await parties.said('stream', '^ERR_|ended')).toBe('ERR_CLOUDAPP_REVOKED')
    await web.run('true')

    await parties.run('customer', 'cloudapp', ['revoke', '--broker', socket, '--key', 'owner.key', granted.blockId])
    expect(await parties.said('ids', '^web-1 ended')).toBe('web-1 ended: ERR_CLOUDAPP_REVOKED')
    const head = ['audit', 'head', '--broker', socket, '--key', 'owner.key', '--out', 'audit.head']
    await parties.json('customer', head)
    const log = await parties.run('root', 'cloudapp', [
      ...['audit', 'verify', 'state/audit.log', '--broker-key', 'broker.key.pub'],
      ...['--head', parties.file('customer', 'audit.head')],
    ])
    expect(log.status).toBe(0)
  })
})

/** Of the detector, which is the same VM when it is created anew. */
const IDS = { uuid: randomUUID(), disk: '/srv/ids.img', name: 'ids-1' }

const CLI = 'node_modules/@cloudapp/sdk/dist/cli/main.js'
const introduce = (service: string, server: string, client: string): string[] => [
  'vchan',
  'introduce',
  service,
  '--server',
  server,
  '--client',
  client,
]

/** What the client's program says of a finding. */
interface Told {
  readonly change: string
  readonly uid: string
  readonly title: string
  readonly count: number
}

describe('the main job, with the service domain in a VM of its own', AFTER_LOSS, () => {
  let block: string
  /** A finding's uid. */
  let acknowledged: string

  /** Creates the detector's VM, has dom0 introduce it to the broker and to the client. */
  async function createDetector(parties: Dom0Parties): Promise<XenGuest> {
    const ids = await xen.createGuest({
      ...{ name: IDS.name, kind: 'pvh', node: true, memory: '384M', modules: VCHAN_MODULES },
      ...{ disks: [block], config: `uuid = "${IDS.uuid}"` },
    })
    await ids.run('mkdir /store && mount -t ext4 /dev/xvdd /store && mkdir -p /store/inbox')
    for (const [service, server, client] of [
      ['broker', '0', IDS.name],
      ['ids', IDS.name, 'web-1'],
    ] as const) {
      await parties.json('root', introduce(service, server, client))
    }
    return ids
  }

  async function serve(ids: XenGuest): Promise<void> {
    const files = ['--manifest', '/store/cloudapp.json', '--key', '/store/sd.key', '--store', '/store/findings.db']
    const where = ['--inbox', '/store/inbox', '--broker', 'vchan:broker', '--listen', 'vchan:ids']
    const program = await running(ids, ['node', 'ids.mjs', ...files, ...where].join(' '))
    await program.said('serves vchan:ids')
    await program.said('^attached to web-1')
  }

  const told = (said: string): Told[] =>
    said
      .split('\n')
      .filter((line) => line.startsWith('{"change"'))
      .map((line) => JSON.parse(line))

  it('finds the rootkit over vchan; when that VM is killed and created anew, its client goes on and nothing is lost', async () => {
    await xen.dom0.run(`xl destroy ${IDS.name}`, { check: false })
    await using parties = await Dom0Parties.install(xen)
    const socket = await startBroker(parties, 'vchan:broker')
    const made = await xen.dom0.run(
      `truncate -s 64M ${IDS.disk} && mke2fs -q -t ext4 ${IDS.disk} && losetup --find --show ${IDS.disk}`,
    )
    block = made.stdout.trim()
    const ids = await createDetector(parties)
    const cli = (words: string) => ids.node([CLI, ...words.split(' '), '--json'])
    const { publicKey } = JSON.parse((await cli('keys generate /store/sd.key')).stdout)
    await cli('keys generate /store/publisher.key')
    await cli(`manifest sign ${APP}/cloudapp.json --key /store/publisher.key --out /store/cloudapp.json`)
    const { token } = await parties.json<{ token: string }>('customer', [
      ...['delegate', '--broker', socket, '--key', 'owner.key', '--vm', 'web-1', '--to', publicKey],
      ...['--rights', RIGHTS, '--expires', '60m'],
    ])
    // The VM is killed below: ext4 gives a new file its blocks up to half a minute later, and until then it is empty.
    await ids.push('/store/inbox/web-1.token', `${token}\n`)
    await ids.run('sync')
    await serve(ids)

    const client = await running(web, 'node client-vm.mjs ids')
    expect(await client.said('discovered')).toBe('{"discovered":"vchan:ids"}')
    acknowledged = JSON.parse(await client.said('acknowledged')).acknowledged
    await client.said('"live":true')
    const before = told(await client.soFar())
    const known = new Map(before.map(({ uid, title }) => [uid, title]))
    expect([...known.values()].sort()).toEqual(titles())

    await ids.destroy()
    await serve(await createDetector(parties))
    // Its next look tells the client of what it has told of already: the same findings, seen once more.
    const hook = before.find(({ title }) => title.includes('getdents64'))
    await client.said(`"change":"update","uid":"${hook?.uid}".*"count":[2-9]`)
    const all = await client.soFar()
    expect(all).not.toContain('"gap"')
    expect(new Set(told(all).map(({ uid }) => uid))).toEqual(new Set(known.keys()))

    // One vchan is there for two domains: the next client comes when the first has ended.
    await web.run(`kill ${await client.pid()}`)
    const list = [CLI, 'findings', 'list', '--endpoint', 'vchan:ids', '--json']
    const kept: { finding_info: { uid: string; title: string }; status: string }[] = JSON.parse(
      (await web.node(list)).stdout,
    )
    expect(kept.map(({ finding_info }) => finding_info.title).sort()).toEqual(titles())
    expect(kept.find(({ finding_info }) => finding_info.uid === acknowledged)?.status).toBe('In Progress')
  })

  it('tells the VM of another tenant nothing, nor that there is anything', async () => {
    await xen.dom0.run('xl destroy other-1', { check: false })
    const other = await xen.createGuest({
      ...{ name: 'other-1', kind: 'pvh', node: true, memory: '320M', modules: VCHAN_MODULES },
    })
    await xen.dom0.node([CLI, ...introduce('ids', IDS.name, other.name)])
    const { stdout } = await other.node(['tenant.mjs', 'ids', acknowledged, '0193c2f0-0000-7000-8000-000000000000'])
    const { list, watched, asked } = JSON.parse(stdout)
    expect([list, watched]).toEqual([[], []])
    expect(asked[0]).toMatch(/^ERR_CLOUDAPP_NOT_FOUND .*UID/)
    expect(asked[0]).toBe(asked[1])
    await other.destroy()
  })

  it('leaves the client running, and nothing of it mapped', async () => {
    expect((await web.run('echo alive')).stdout).toBe('alive\n')
    await xen.dom0.run(`xl destroy ${IDS.name}`)
    await web.destroy()
    // A domain whose pages are still mapped somewhere stays in the list.
    await xen.dom0.run(`timeout 60 sh -c 'while xl list ${web.domid} 2>/dev/null; do sleep 0.2; done'`, {
      timeoutMs: 90_000,
    })
  })
})
