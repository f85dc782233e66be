import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { readAudit } from '../../src/broker/audit/index.js'
import { bindingOf } from '../../src/broker/binding.js'
import { connectBroker, connectOwner } from '../../src/broker/client.js'
import type { Channel } from '../../src/transport/channel.js'
import { vchanPair } from '../../src/transport/xen/vchan-pair.js'
import { Host } from './host.js'
import { RawHolder } from './raw-holder.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

/** What the listener of a vchan hands its channels to: Xen makes no channels here, `between` does. */
const vchan = vi.hoisted(() => ({ onChannel: (_: unknown): void => undefined }))
vi.mock('../../src/transport/xen/service.js', () => ({
  listenVchanService: async (_: unknown, onChannel: typeof vchan.onChannel) => {
    vchan.onChannel = onChannel
    return { address: 'vchan:broker', close: async () => undefined }
  },
}))

interface Domain {
  readonly domid: number
  /** As dom0 wrote it in xenstore, if it did. */
  readonly uuid: string | undefined
}
const control: Domain = { domid: 0, uuid: '00000000-0000-0000-0000-000000000000' }
const holder: Domain = { domid: 5, uuid: '55555555-5555-4555-8555-555555555555' }
const relay: Domain = { domid: 7, uuid: '77777777-7777-4777-8777-777777777777' }

let host: Host
const open: { close(): Promise<void> }[] = []
beforeAll(async () => {
  host = await Host.start()
  await host.broker.listen({ socket: 'vchan:broker' })
})
afterAll(async () => {
  await Promise.all(open.map((handle) => handle.close()))
  await host[Symbol.asyncDispose]()
})

/** The ends of a vchan from one domain to another: real rings, and the peers that Xen and xenstore would tell of. */
function between(client: Domain, server: Domain): { client: Channel; server: Channel } {
  const [clientEnd, serverEnd] = vchanPair()
  const end = (channel: Channel, local: Domain, far: Domain) => {
    open.push(channel)
    return Object.defineProperty(channel, 'peer', { value: { kind: 'vchan', ...far, local } })
  }
  return { client: end(clientEnd, client, server), server: end(serverEnd, server, client) }
}

/** A domain's end of a vchan to the broker. */
function toBroker(from: Domain): Channel {
  const { client, server } = between(from, control)
  vchan.onChannel(server)
  return client
}

const mint = (): Uint8Array => host.mint({ transports: ['vchan'] })

const PROOF = { code: 'ERR_CLOUDAPP_PROOF' }
const one = [{ space: 0n, at: 0x1000n, length: 4 }]

describe('a broker over vchan', () => {
  it('serves a domain, and names it as dom0 does', async () => {
    const connection = await connectBroker({ channel: toBroker(holder), key: host.holder })
    const vm = await connection.redeem<'memory.read'>(mint())
    const [result] = await vm.memory.read(one)
    expect(Buffer.from(result?.bytes ?? []).readUInt32LE()).toBe(0x1000)
    await connection.close()
    const peers: unknown[] = []
    for await (const { entry } of readAudit(`${host.state}/audit.log`)) {
      if (entry.action === 'token.redeem' && entry.outcome === 'allowed') peers.push(entry.peer)
    }
    expect(peers.at(-1)).toBe(`vchan domid=5 uuid=${holder.uuid}`)
  })

  it('takes no proof that was made for another vchan', async () => {
    const token = mint()
    const channel = toBroker(relay)
    const raw = await RawHolder.open(host, host.holder, channel)
    // All by the right key, for the right token and for this challenge: only the domains are others.
    const other: [string, Domain, Domain][] = [
      ['of the holder’s domain', holder, control],
      ['of a domain that had the number before', { ...relay, uuid: holder.uuid }, control],
      ['of the domain under its number before', { ...relay, domid: 6 }, control],
      ['to another domain', relay, holder],
      ['the other way', control, relay],
    ]
    for (const [which, client, server] of other) {
      const binding = bindingOf(between(client, server).client, 'holder')
      const proof = await raw.prove(token, binding)
      await expect(raw.present(token, proof), which).rejects.toMatchObject(PROOF)
    }
    await raw.redeem(token)
    await raw.close()
  })

  it('takes a proof that was good on one vchan on no other', async () => {
    const token = mint()
    const first = await RawHolder.open(host, host.holder, toBroker(holder))
    const proof = await first.prove(token)
    const second = await RawHolder.open(host, host.holder, toBroker(relay))
    await expect(second.present(token, proof)).rejects.toMatchObject(PROOF)
    // Nor for a challenge of the second that the first's domain signs.
    const signed = await second.prove(token, bindingOf(first.session.channel, 'holder'))
    await expect(second.present(token, signed)).rejects.toMatchObject(PROOF)
    await first.present(token, proof)
    await Promise.all([first.close(), second.close()])
  })

  it('finds out a relay in a third domain that passes on every byte', async () => {
    const pump = async (from: Channel, to: Channel) => {
      for (let bytes = await from.read(); bytes !== undefined; bytes = await from.read()) to.write(bytes)
    }
    const relayed = () => {
      const { client, server } = between(holder, relay)
      const onward = toBroker(relay)
      for (const done of [pump(server, onward), pump(onward, server)]) done.catch(() => undefined)
      return client
    }
    // Holder and relay see nothing amiss, and the answer is the broker's: it sees the relay's domain.
    const seen = { ...PROOF, message: expect.stringContaining('for this channel') }
    const connection = await connectBroker({ channel: relayed(), key: host.holder, broker: host.brokerKey.publicKey })
    await expect(connection.redeem(mint())).rejects.toMatchObject(seen)
    await connection.close()
    await expect(connectOwner({ channel: relayed(), key: host.owner })).rejects.toMatchObject(seen)
  })

  it('turns away a domain of which dom0 has said nothing, and serves others', async () => {
    const unknown = connectBroker({ channel: toBroker({ domid: 9, uuid: undefined }), key: host.holder })
    await expect(unknown).rejects.toMatchObject({ code: expect.stringMatching(/^ERR_CLOUDAPP_/) })
    const connection = await connectBroker({ channel: toBroker(holder), key: host.holder })
    await connection.redeem(mint())
    await connection.close()
  })
})
