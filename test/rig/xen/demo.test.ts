import { randomBytes } from 'node:crypto'
import { beforeAll, describe, expect, it } from 'vitest'
import { kernel, rootkit, rootkitParameters } from '../lib/index.js'
import { sharedXen, showConsoles, verbose, type XenGuest, type XenHost } from './lib/index.js'
import { Dom0Parties, UIDS } from './lib/parties.js'

let xen: XenHost
let web: XenGuest
let hidden: number

beforeAll(async () => {
  xen = await sharedXen()
  const files = { '/shade.ko': await rootkit(await kernel('6.1'), verbose) }
  web = await xen.createGuest({ name: 'web-1', kind: 'pvh', memory: '192M', files })
  hidden = Number((await web.run('(while true; do sleep 1; done) > /dev/null 2>&1 & echo $!')).stdout)
  const parameters = rootkitParameters({ hidePids: [hidden], hookFtrace: true, hookPatch: true, hideModule: true })
  await web.run(`insmod /shade.ko ${parameters}`)
}, 900_000)
showConsoles()

describe('the main job, with the service domain as a process of dom0', () => {
  it('delegates, finds the rootkit through xen:, tells the client, and ends when it is revoked', async () => {
    await using parties = await Dom0Parties.install(xen)
    const owner = await parties.json<{ publicKey: string }>('customer', ['keys', 'generate', 'owner.key'])
    const detector = await parties.json<{ publicKey: string }>('sd', ['keys', 'generate', 'sd.key'])
    await parties.json('root', ['keys', 'generate', 'broker.key'])
    const entry = { name: 'web-1', uuid: web.uuid, bootNonce: randomBytes(16).toString('hex'), owner: owner.publicKey }
    const register = { version: 1, vms: [{ ...entry, source: web.uri }] }
    await parties.write('root', 'register.json', JSON.stringify(register))
    const socket = parties.socket('broker')
    const config = { key: 'broker.key', register: 'register.json', state: 'state', socket, mode: '0666' }
    await parties.write('root', 'broker.json', JSON.stringify(config))
    await parties.start('root', 'cloudapp', ['broker', '--config', 'broker.json'])
    await parties.said('cloudapp', 'broker.sock')

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
      ...['--rights', 'vm.info,memory.read,vcpu.read', '--expires', '30m'],
    ])
    await parties.write('sd', 'inbox/web-1.token', `${granted.token}\n`)
    expect(await parties.said('ids', '^attached to web-1')).toContain(`Linux ${xen.kernel.release}`)

    const scan = ['--endpoint', endpoint, '--scan', '1', '--vm', 'web-1', '--json']
    const { stdout } = await parties.run('client', 'client', scan, { timeoutMs: 400_000 })
    const findings: { class_uid: number; finding_info: { title: string } }[] = JSON.parse(stdout)
    const titles = findings.map(({ finding_info }) => finding_info.title).sort()
    expect(titles).toEqual([
      expect.stringMatching(/^Hidden kernel module shade/),
      expect.stringMatching(new RegExp(`^Hidden process ${hidden} \\(sh\\)`)),
      expect.stringMatching(/getdents64 is diverted by ftrace at \S+ to \[shade\]/),
      expect.stringMatching(/kill is diverted by a patched jump at \S+ to \[shade\]/),
    ])
    expect(findings.map(({ class_uid }) => class_uid)).toEqual([2004, 2004, 2004, 2004])

    const overreach = await parties.run('sd', 'probe', ['overreach', socket, 'sd.key', 'inbox/web-1.token'])
    expect(overreach.stdout).toBe('ERR_CLOUDAPP_DENIED\n')

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

  it('leaves the client running, and nothing of it mapped', async () => {
    expect((await web.run('echo alive')).stdout).toBe('alive\n')
    await web.destroy()
    // A domain whose pages are still mapped somewhere stays in the list.
    await xen.dom0.run(`timeout 60 sh -c 'while xl list ${web.domid} 2>/dev/null; do sleep 0.2; done'`, {
      timeoutMs: 90_000,
    })
  })
})
