import { describe, expect, it } from 'vitest'
import { KeyPair } from '../../src/capabilities/keys.js'
import { makePass } from '../../src/capabilities/pass.js'
import type { SdClient } from '../../src/service/client.js'
import { collect, Served } from './served.js'
import { DB, WEB } from './support.js'

const GUESSES = ['0193c2f0-0000-7000-8000-000000000000', 'no-such-uid']
const DIGEST = `sha256:${'0'.repeat(64)}`

/** Everything a client can ask, as it is answered; what names the asked uid is made the same. */
async function answers(client: SdClient, uids: readonly string[]): Promise<unknown[]> {
  const told = async (work: Promise<unknown>, uid = '?') =>
    work.catch((e: Error & { code: string; details?: unknown }) =>
      JSON.stringify([e.code, e.message, e.details]).replaceAll(uid, 'UID'),
    )
  const all: unknown[] = []
  for (const uid of uids) {
    all.push(
      await told(client.findings.get(uid), uid),
      await told(client.findings.acknowledge(uid, { comment: 'x' }), uid),
      await told(collect(client.artifacts.read(uid, DIGEST)), uid),
    )
  }
  for (const vm of [WEB.name, WEB.uuid, 'no-such-vm']) {
    all.push(await collect(client.findings.list({ vm })), await told(client.run({ vm }), vm))
    const stop = new AbortController()
    const seen: unknown[] = []
    for await (const f of client.findings.watch({ vm, signal: stop.signal, onLive: () => stop.abort() })) seen.push(f)
    all.push(seen)
  }
  all.push(await collect(client.findings.list()), await client.health(), await client.describe())
  return all
}

describe('a client of another tenant', () => {
  it('sees nothing, and can not tell that there is anything, whatever it asks or guesses', async () => {
    const sd = new Served()
    const other = await sd.connect('nobody')
    const before = await answers(other, [...GUESSES, ...GUESSES])
    const raised = await sd.findings.raise({
      key: 'secret',
      about: WEB,
      title: 'secret',
      severity: 'fatal',
      artifacts: [{ name: 'a', data: new Uint8Array(10) }],
    })
    const closed = await sd.raise('closed')
    await sd.findings.close('closed')
    sd.health.fail('handler', new Error('web-1 lies'), WEB)
    const stop = new AbortController()
    const loop = sd.scans.begin({
      intervalMs: 1000,
      about: WEB,
      service: 'ids',
      until: [stop.signal],
      context: undefined,
    })
    await loop.next()
    const after = await answers(other, [raised.uid, closed.uid, ...GUESSES])
    stop.abort()
    expect(after).toEqual(before)
    expect(sd.store.get(raised.uid, 'all')?.status).toBe(1)
  })
})

describe("a customer's key", () => {
  it('shows all of the VMs it owns and no other, over any channel, as a key or as a pass', async () => {
    const sd = new Served()
    const [alice, bob] = [KeyPair.generate(), KeyPair.generate()]
    sd.store.owners.set(WEB.uuid, alice.publicKey)
    sd.store.owners.set(DB.uuid, bob.publicKey)
    await sd.raise('web')
    await sd.raise('db', DB)
    const keys = async (client: SdClient) =>
      (await collect(client.findings.list())).map((f) => f.finding.unmapped.cloudapp.key)
    const pass = makePass(alice, { service: sd.key.publicKey, expires: '1h' })
    for (const peer of ['nobody', 'db', 'admin']) {
      expect(await keys(await sd.connect(peer, { key: alice }))).toEqual(['web'])
      expect(await keys(await sd.connect(peer, { pass }))).toEqual(['web'])
    }
    expect(await keys(await sd.connect('nobody', { key: bob }))).toEqual(['db'])
    expect(await keys(await sd.connect('nobody', { key: KeyPair.generate() }))).toEqual([])
    const client = await sd.connect('nobody', { key: alice })
    const [mine] = await collect(client.findings.list())
    const done = await client.findings.acknowledge(mine?.finding.finding_info.uid ?? '')
    expect(done.finding.unmapped.cloudapp.acknowledged?.by).toBe(`customer ${alice.publicKey}`)
    // A VM that changes hands changes what either sees, also in sessions that are open.
    sd.store.owners.set(WEB.uuid, bob.publicKey)
    expect(await keys(client)).toEqual([])
  })

  it('is not believed for another service domain, another channel, or past its time', async () => {
    const sd = new Served()
    const alice = KeyPair.generate()
    const elsewhere = makePass(alice, { service: KeyPair.generate().publicKey, expires: '1h' })
    await expect(sd.connect('nobody', { pass: elsewhere })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROOF' })
    const channel = sd.channel('nobody').binding
    const bound = makePass(alice, { service: sd.key.publicKey, expires: '1h', channel })
    await expect(sd.connect('nobody', { pass: bound })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROOF' })
    sd.store.owners.set(WEB.uuid, alice.publicKey)
    await sd.raise('web')
    const short = makePass(alice, { service: sd.key.publicKey, expires: Date.now() + 5000 })
    const client = await sd.connect('nobody', { pass: short, reconnectMs: 0 })
    while ((await collect(client.findings.list())).length > 0) await new Promise((r) => setTimeout(r, 100))
    await expect(sd.connect('nobody', { pass: short })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_EXPIRED' })
  })
})
