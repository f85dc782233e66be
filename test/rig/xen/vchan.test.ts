import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  AFTER_LOSS,
  remakeLost,
  running,
  sharedXen,
  showConsoles,
  VCHAN_MODULES,
  type XenGuest,
  type XenHost,
} from './lib/index.js'

let xen: XenHost
let server: XenGuest
let client: XenGuest

const guest = (name: string): Promise<XenGuest> =>
  xen.createGuest({ name, kind: 'pvh', node: true, memory: '384M', modules: VCHAN_MODULES, timeoutMs: 600_000 })

beforeAll(async () => {
  xen = await sharedXen()
  ;[server, client] = await Promise.all([guest('vchan-a'), guest('vchan-b')])
}, 1_200_000)
remakeLost(async () => {
  if (!(await server.lives())) server = await guest('vchan-a')
  if (!(await client.lives())) client = await guest('vchan-b')
})
afterAll(async () => {
  for (const guest of [server, client]) await guest?.destroy().catch(() => {})
})
showConsoles()

let serial = 0
/** A path below the server's own folder, which it may write. */
const freshPath = (domid: number): string => `/local/domain/${domid}/data/test/${serial++}`

const LIMIT = { timeoutMs: 330_000 }

type Ours = [role: 'serve' | 'connect', domid: number, path: string, ring: number, mode: string]
/** One after the other, in one process. */
const allOurs = (each: readonly Ours[]) => `node vchan.mjs ${each.map((words) => words.join(' ')).join(' + ')}`
const ours = (...words: Ours) => allOurs([words])
const theirs = (role: 'server' | 'client', domid: number, path: string, ring: number, mode: string) =>
  `/app/vchan-peer ${role} ${domid} ${path} ${ring} ${mode}`

describe('xenstore, grants and event channels between two guests', AFTER_LOSS, () => {
  it('passes all that the programs check', async () => {
    const path = freshPath(server.domid)
    const one = await running(server, `node xen-parts.mjs give ${client.domid} ${path}`)
    const other = await running(client, `node xen-parts.mjs take ${server.domid} ${path}`)
    // Where one fails the other waits in vain: what the first to end says is the reason.
    expect(await Promise.race([one.end(), other.end()])).toContain('all fine')
    expect((await Promise.all([one.end(), other.end()])).join('')).toMatch(/all fine\n.*all fine/s)
  }, 700_000)
})

describe("a vchan with Debian's libxenvchan at the other end", AFTER_LOSS, () => {
  // 1 KiB: one ring of 1 and one of 2, both in the shared page; 4 KiB: a page each; 64 KiB: the default.
  const most = (ring: number) => `drive ${Math.min(3 * ring, 80_000)}`

  it('serves it with rings of 1 KiB to 1 MiB, whatever the pieces', async () => {
    const rings = [1024, 4096, 65_536, 1_048_576].map((ring) => ({ ring, path: freshPath(server.domid) }))
    const serve = rings.map(({ ring, path }): Ours => ['serve', client.domid, path, ring, 'echo'])
    const end = await running(server, allOurs(serve))
    const drive = rings.map(({ ring, path }) => theirs('client', server.domid, path, ring, most(ring)))
    const { stdout } = await client.run(drive.join('\n'), LIMIT)
    expect(stdout).toMatch(/^(open\ndrove \d+ bytes\nclosed\n){4}$/)
    expect((await end.end()).split(`"domid":${client.domid},`)).toHaveLength(5)
  }, 400_000)

  it('connects to it with rings of 1 KiB to 1 MiB', async () => {
    const rings = [1024, 65_536, 1_048_576].map((ring) => ({ ring, path: freshPath(server.domid) }))
    const ends = await Promise.all(
      rings.map(({ ring, path }) => running(server, theirs('server', client.domid, path, ring, 'echo'))),
    )
    const drive = rings.map(({ ring, path }): Ours => ['connect', server.domid, path, ring, most(ring)])
    const { stdout } = await client.run(`cd /app; ${allOurs(drive)}`, LIMIT)
    expect(stdout).toMatch(/^(peer .*\ndrove \d+ bytes\nclosed \d+\n){3}$/)
    for (const end of ends) expect(await end.end()).toContain('closed')
  }, 400_000)

  it('is refused where the grants have run out, and is told why', async () => {
    // gntalloc gives 1,024; a pair of such rings takes 513.
    const large = (path: string) => ours('serve', client.domid, path, 1_048_576, 'hold')
    const first = await running(server, large(freshPath(server.domid)))
    await first.said('^open')
    const { stdout } = await server.run(`cd /app; ${large(freshPath(server.domid))}`, LIMIT)
    expect(stdout).toMatch(/^ERR_CLOUDAPP_LIMIT .*gntalloc/)
    await server.run(`kill -KILL ${await first.pid()}`)
  })

  it('ends with an error when a server writes impossible indexes', async () => {
    const path = freshPath(server.domid)
    const liar = await running(server, theirs('server', client.domid, path, 4096, 'lie 1 0x7fffffff'))
    await liar.said('^open')
    const { stdout } = await client.run(`cd /app; ${ours('connect', server.domid, path, 4096, 'greet')}`, LIMIT)
    expect(stdout).toMatch(/ERR_CLOUDAPP_PROTOCOL the peer wrote impossible indexes/)
    await server.run(`kill -KILL ${await liar.pid()}`)
  })

  it('ends with an error when a peer corrupts any of the indexes', async () => {
    const paths = [0, 1, 2, 3].map(() => freshPath(server.domid))
    const serve = paths.map((path): Ours => ['serve', client.domid, path, 4096, 'greet'])
    const end = await running(server, allOurs(serve))
    const liars = paths.map((path, index) => theirs('client', server.domid, path, 4096, `lie ${index} 0x7fffffff`))
    const { stdout: pids } = await client.run(
      `${liars.map((lie, i) => `${lie} > /tmp/lie-${i} 2>&1 & pids="$pids $!"`).join('\n')}\necho $pids`,
    )
    const said = (await end.end()).split('\n').filter((line) => line.startsWith('ERR_'))
    expect(said).toHaveLength(4)
    for (const line of said) expect(line).toMatch(/^ERR_CLOUDAPP_PROTOCOL the peer wrote impossible indexes/)
    const { stdout: lies } = await client.run(`kill -KILL ${pids.trim()}; cat /tmp/lie-?`)
    expect(lies.split('\n').filter((line) => line === 'lied')).toHaveLength(4)
  }, 400_000)
})

describe('streams in one vchan', AFTER_LOSS, () => {
  it('are shared by the programs of a domain, one of which takes it over when the first is killed', async () => {
    const name = `echo-${serial++}`
    const end = await running(server, `node streams.mjs serve ${client.domid} ${name}`)
    await end.said('^open')
    const ask = (count: number) => running(client, `node streams.mjs ask ${server.domid} ${name} ${count}`)
    const port = async () => {
      const path = `/local/domain/${server.domid}/data/cloudapp/${name}/${client.domid}/event-channel`
      return (await xen.dom0.run(`xenstore-read ${path}`)).stdout
    }
    const first = await ask(2)
    await first.said('^answered 2')
    const before = await port()
    const second = await ask(3)
    await second.said('^answered 3')
    expect(await second.said('^peer')).toContain(`"kind":"vchan","domid":${server.domid}`)
    expect(await port()).toBe(before)
    await client.run(`kill -KILL ${await first.pid()}`)
    expect(await second.end()).toMatch(/^answered 3\npeer .*\nended\nagain\n$/)
    const said = await end.soFar()
    expect(said.split('\n').filter((line) => line.startsWith('stream'))).toHaveLength(6)
    expect(said).toContain(`"kind":"vchan","domid":${client.domid}`)
    await server.run(`kill -KILL ${await end.pid()}`)
  }, 700_000)
})

describe('a vchan whose peer goes away', AFTER_LOSS, () => {
  /** ms between a moment of the one clock all domains see through Xen, and when the other end told of it. */
  const late = (said: string, at: number): number => Number(/^closed (\d+)$/m.exec(said)?.[1]) - at

  it('tells a second client that there is one, and ends within a second when that is killed', async () => {
    const path = freshPath(server.domid)
    const end = await running(server, ours('serve', client.domid, path, 4096, 'hold'))
    await end.said('^open')
    const peer = await running(client, theirs('client', server.domid, path, 4096, 'hold'))
    await peer.said('^held')
    await end.said('^held')
    const second = await client.run(`cd /app; TIMEOUT=2000 ${ours('connect', server.domid, path, 4096, 'hold')}`, LIMIT)
    expect(second.stdout).toMatch(/^ERR_CLOUDAPP_NOT_FOUND .* one client of a domain at a time/)
    const killed = await client.run(`kill -KILL ${await peer.pid()}; /usr/bin/date +%s%3N`)
    const said = await end.end()
    expect(said).toContain('the peer ended')
    expect(late(said, Number(killed.stdout))).toBeLessThan(1000)
  })

  it('ends within a second when the peer domain is destroyed', async () => {
    await xen.dom0.run('xl destroy vchan-c', { check: false })
    const doomed = await guest('vchan-c')
    const path = freshPath(server.domid)
    const end = await running(server, ours('serve', doomed.domid, path, 4096, 'hold'))
    await end.said('^open')
    const peer = await running(doomed, theirs('client', server.domid, path, 4096, 'hold'))
    await peer.said('^held')
    await end.said('^held')
    // xl returns when the domain is gone for Xen; that it goes takes longest.
    const { stdout } = await xen.dom0.run(`xl destroy ${doomed.domid}; date +%s%3N`)
    const said = await end.end()
    expect(said).toMatch(/ERR_CLOUDAPP_CLOSED The vchan ended: domain \d+ has ended/)
    expect(late(said, Number(stdout))).toBeLessThan(1000)
  }, 900_000)

  it('ends within a second, at both ends, when the peer domain is saved and restored', async () => {
    await xen.dom0.run('xl destroy vchan-d', { check: false })
    const saved = await guest('vchan-d')
    const path = freshPath(server.domid)
    const end = await running(server, ours('serve', saved.domid, path, 4096, 'hold'))
    await end.said('^open')
    const peer = await running(saved, ours('connect', server.domid, path, 4096, 'hold'))
    await peer.said('^held')
    await end.said('^held')
    // Linux thaws its processes only when its devices are back, seconds after xl returns.
    const clock = await running(saved, 'node clock.mjs')
    await clock.said('^ticks')
    const { stdout: gone } = await xen.dom0.run(`xl save ${saved.domid} /tmp/saved && date +%s%3N`, {
      timeoutMs: 300_000,
    })
    const said = await end.end()
    expect(said).toMatch(/ERR_CLOUDAPP_CLOSED The vchan ended: domain \d+ has ended/)
    expect(late(said, Number(gone))).toBeLessThan(1000)
    await xen.dom0.run('xl restore /tmp/saved > /dev/null; rm /tmp/saved', { timeoutMs: 300_000 })
    const woken = await peer.end()
    expect(woken).toMatch(/ERR_CLOUDAPP_CLOSED The vchan ended: this domain was restored as domain \d+/)
    const thawed = (await clock.soFar()).split('\n').map((line) => Number(/^woken (\d+)$/.exec(line)?.[1]))
    expect(late(woken, Math.max(...thawed.filter((at) => at > 0)))).toBeLessThan(1000)
    await xen.dom0.run(`xl destroy ${saved.name}`)
  }, 1_200_000)
})
