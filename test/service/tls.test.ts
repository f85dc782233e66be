import { join } from 'node:path'
import { expect, it, vi } from 'vitest'
import { KeyPair } from '../../src/capabilities/keys.js'
import { signManifest } from '../../src/capabilities/manifest-sign.js'
import { makePass } from '../../src/capabilities/pass.js'
import { SdClient } from '../../src/service/client.js'
import { conform } from '../../src/service/conform/conform.js'
import { ServiceDomain } from '../../src/service/domain.js'
import { openGateway } from '../../src/service/gateway/gateway.js'
import { PHYSICAL } from '../../src/vmi/index.js'
import { Host } from '../broker/host.js'
import { later, temporaryFolder } from './support.js'

it('a service domain looks through a broker over TLS, and its clients ask over TLS, known by their keys', async () => {
  const host = await Host.start()
  later(() => host[Symbol.asyncDispose]())
  const { address } = await host.broker.listen({ socket: 'tls:127.0.0.1:0' })
  const owner = await host.connectOwner()
  const { token } = await owner.delegate({
    ...{ vm: 'web-1', to: host.holder.publicKey, rights: ['memory.read'], expires: '10m', transports: ['tls'] },
  })
  const friend = KeyPair.generate()
  const folder = temporaryFolder()
  const sd = await ServiceDomain.start({
    manifest: signManifest(
      {
        ...{ cloudapp: 1, name: 'ids', title: 'Test IDS', version: '1.0.0', vendor: 'Acme', publishes: ['findings'] },
        rights: [{ right: 'memory.read', reason: 'to look for hidden processes' }],
      },
      KeyPair.generate(),
    ),
    key: host.holder,
    broker: `${address}#${host.brokerKey.publicKey}`,
    listen: false,
    store: join(folder, 'findings.db'),
    tokens: [token],
    access: (peer) => (peer.kind === 'tls' && peer.key === friend.publicKey ? 'all' : []),
  })
  later(() => sd.close())
  const endpoint = `${await sd.listen('tls:127.0.0.1:0')}#${host.holder.publicKey}`
  const looked = vi.fn()
  sd.onDelegation(['memory.read'], async (vm) => {
    const [result] = await vm.memory.read([{ space: PHYSICAL, at: 0x1000n, length: 4 }])
    looked(Buffer.from(result?.bytes ?? []).readUInt32LE())
  })
  await vi.waitFor(() => expect(looked).toHaveBeenCalledWith(0x1000), { timeout: 30_000 })
  await sd.findings.raise({ key: 'a', title: 'A hidden process', severity: 'high', about: host.web })

  const count = async (key: KeyPair) => {
    const client = await SdClient.connect(endpoint, { key })
    later(() => client.close())
    const titles: string[] = []
    for await (const { finding } of client.findings.list()) titles.push(finding.finding_info.title)
    return titles
  }
  expect(await count(friend)).toEqual(['A hidden process'])
  expect(await count(host.owner)).toEqual(['A hidden process'])
  expect(await count(KeyPair.generate())).toEqual([])
  const checks = await conform(endpoint, { key: friend, only: 'findings.list' })
  expect(new Set(checks.map(({ outcome }) => outcome))).toEqual(new Set(['passed']))
  const secret = 'local-secret-of-more-than-32-characters'
  const gateway = await openGateway({ endpoint, key: friend, secret })
  later(() => gateway.close())
  const seen = async (bearer: string) => {
    const answer = await fetch(`${gateway.url}/v1/findings`, { headers: { authorization: `Bearer ${bearer}` } })
    return ((await answer.json()) as { findings: [] }).findings.length
  }
  expect(await seen(secret)).toBe(1)
  // The gateway's key shows nothing to who bears a pass.
  expect(await seen(makePass(KeyPair.generate(), { service: host.holder.publicKey, expires: '1m' }))).toBe(0)
  await expect(SdClient.connect(endpoint)).rejects.toThrow(/key of this side/)
  const wrong = endpoint.replace(host.holder.publicKey, host.stranger.publicKey)
  await expect(SdClient.connect(wrong, { key: friend })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_DENIED' })
})
