import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { readAudit } from '../../src/broker/audit/index.js'
import { type BrokerConnection, connectBroker, connectOwner } from '../../src/broker/client.js'
import { KeyPair } from '../../src/capabilities/keys.js'
import type { MintOptions } from '../../src/capabilities/mint.js'
import { deferred } from '../../src/transport/deferred.js'
import type { Channel } from '../../src/transport/index.js'
import { connectTls, listenTls } from '../../src/transport/tls.js'
import { Child } from './child.js'
import { Host } from './host.js'
import { RawHolder } from './raw-holder.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const one = [{ space: 0n, at: 0x1000n, length: 4 }]
let host: Host
let address = ''
const open: { close(): Promise<void> }[] = []
beforeAll(async () => {
  host = await Host.start()
  address = (await host.broker.listen({ socket: 'tls:127.0.0.1:0' })).address
})
afterAll(async () => {
  await Promise.all(open.map((handle) => handle.close()))
  await host[Symbol.asyncDispose]()
})

const portOf = (endpoint: string) => Number(endpoint.split(':').at(-1))

const mint = (change: Partial<MintOptions> = {}): Uint8Array => host.mint(change)

async function overTls(key = host.holder): Promise<BrokerConnection> {
  const connection = await connectBroker({ path: address, key, broker: host.brokerKey.publicKey })
  open.push(connection)
  return connection
}

/** A channel to the broker that proves `key`, for a peer without our client's manners. */
async function channelAs(key: KeyPair): Promise<Channel> {
  return connectTls({ host: '127.0.0.1', port: portOf(address), key, peer: host.brokerKey.publicKey })
}

describe('a broker over TLS', () => {
  it('serves holders and owners as over its socket, and names them by the key they proved', async () => {
    const owner = await connectOwner({ path: `${address}#${host.brokerKey.publicKey}`, key: host.owner })
    open.push(owner)
    const { token, revoke } = await owner.delegate({
      ...{ vm: 'web-1', to: host.holder.publicKey, rights: ['memory.read'], expires: '10m' },
    })
    const vm = await (await overTls()).redeem<'memory.read'>(token)
    const [result] = await vm.memory.read(one)
    expect(Buffer.from(result?.bytes ?? []).readUInt32LE()).toBe(0x1000)
    await revoke()
    await expect(vm.memory.read(one)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    const peers: (string | undefined)[] = []
    for await (const { entry } of readAudit(join(host.state, 'audit.log'))) {
      if (entry.action === 'token.redeem' && entry.outcome === 'allowed') peers.push(entry.peer)
    }
    expect(peers.at(-1)).toMatch(new RegExp(`^tls key=${host.holder.publicKey} address=127\\.0\\.0\\.1:\\d+$`))
  })

  it('honours the transports a token may arrive on, each way', async () => {
    const [unix, tls] = [await host.connect(), await overTls()]
    const wrong = { code: 'ERR_CLOUDAPP_TOKEN', details: expect.objectContaining({ reason: 'transport' }) }
    const onlyTls = mint({ transports: ['tls'] })
    await (await tls.redeem<'memory.read'>(onlyTls)).memory.read(one)
    await expect(unix.redeem(onlyTls)).rejects.toMatchObject(wrong)
    const onlyUnix = mint({ transports: ['unix'] })
    await (await unix.redeem<'memory.read'>(onlyUnix)).memory.read(one)
    await expect(tls.redeem(onlyUnix)).rejects.toMatchObject(wrong)
    await expect(unix.redeem(mint({ transports: ['vchan'] }))).rejects.toMatchObject(wrong)
    const inProcess = await connectBroker({ channel: host.broker.connect(), key: host.holder })
    open.push(inProcess)
    await expect(inProcess.redeem(onlyTls)).rejects.toMatchObject(wrong)
    await (await inProcess.redeem<'memory.read'>(mint({ transports: ['process'] }))).memory.read(one)
  })

  it('must be named by its key, and be it', async () => {
    await expect(connectBroker({ path: address, key: host.holder })).rejects.toThrow(/public key/)
    const other = KeyPair.generate().publicKey
    await expect(connectBroker({ path: address, key: host.holder, broker: other })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_DENIED',
    })
  })

  it('takes a stolen token from nobody who lacks its key, whatever key they prove to TLS', async () => {
    const thief = KeyPair.generate()
    const raw = await RawHolder.open(host, thief, await channelAs(thief))
    await expect(raw.redeem(mint())).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROOF' })
    await raw.close()
  })

  it('takes no proof that was made for another connection, also of the same two keys', async () => {
    const token = mint()
    const [first, second] = [
      await RawHolder.open(host, host.holder, await channelAs(host.holder)),
      await RawHolder.open(host, host.holder, await channelAs(host.holder)),
    ]
    // The challenge is of the one, the binding of the other: what a relay between the two would have.
    const { binding } = first.session.channel
    const relayed = await second.prove(token, { transport: 'tls', exporter: binding })
    await expect(second.present(token, relayed)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROOF' })
    await second.redeem(token)
    await Promise.all([first.close(), second.close()])
  })
})

describe('a relay', () => {
  it('of a broker over TLS, trusted for other things, can not use the challenge of this one', async () => {
    // A malicious peer with a key of its own, to which a holder connects by that key. It hands on all it is told.
    const relayKey = KeyPair.generate()
    const taken = deferred<Channel>()
    const listener = await listenTls({ host: '127.0.0.1', port: 0, key: relayKey, onChannel: taken.resolve })
    const victim = { path: listener.address, key: host.holder, broker: relayKey.publicKey }
    const connecting = connectBroker(victim).then(
      () => 'connected',
      (error: unknown) => error,
    )
    const near = await taken.promise
    const far = await channelAs(relayKey)
    const pump = async (from: Channel, to: Channel) => {
      for (let bytes = await from.read(); bytes !== undefined; bytes = await from.read()) to.write(bytes)
    }
    const pumps = [pump(near, far), pump(far, near)].map((done) => done.catch(() => undefined))
    // Our client sees that the broker behind is not who it connected to, before it signs anything.
    expect(await connecting).toMatchObject({ code: 'ERR_CLOUDAPP_PROOF' })
    await Promise.all([near.close(), far.close(), listener.close()])
    await Promise.all(pumps)
  })

  it('on a unix socket, passing on every byte, is found out by the broker', async () => {
    const path = join(host.folder, 'relay.sock')
    const child = await Child.start('relay-child.ts', [path, host.socket])
    await child.next()
    const connection = await connectBroker({ path, key: host.holder })
    open.push(connection)
    await expect(connection.redeem(mint())).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROOF' })
    await expect(connectOwner({ path, key: host.owner })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROOF' })
    // The same without the relay.
    await (await host.connect()).redeem(mint())
    await child.kill()
  })
})
