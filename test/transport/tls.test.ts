import { generateKeyPairSync, X509Certificate } from 'node:crypto'
import { type EventEmitter, once } from 'node:events'
import { connect as connectTcp, createServer, type Socket } from 'node:net'
import { type ConnectionOptions, connect, createServer as createTlsServer } from 'node:tls'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { KeyPair } from '../../src/capabilities/keys.js'
import type { Channel, ChannelListener } from '../../src/transport/channel.js'
import { deferred } from '../../src/transport/deferred.js'
import { connectEndpoint, parseEndpoint } from '../../src/transport/endpoint.js'
import { openSession } from '../../src/transport/session.js'
import { connectTls, listenTls } from '../../src/transport/tls.js'
import { certificateOf } from '../../src/transport/tls-certificate.js'
import { channelConformance } from '../conformance/channel.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const server = KeyPair.generate()
const client = KeyPair.generate()
const host = '127.0.0.1'
const portOf = (listener: ChannelListener) => Number(listener.address.split(':').at(-1))

describe('tls channel', () => {
  channelConformance(async () => {
    const taken = deferred<Channel>()
    const listener = await listenTls({ host, port: 0, key: server, onChannel: taken.resolve })
    const near = await connectTls({ host, port: portOf(listener), key: client, peer: server.publicKey })
    const far = await taken.promise
    await listener.close()
    return [near, far]
  })
})

describe('a certificate of ours', () => {
  it('is one to others too: its key, its own signature, the same bytes for the same key', () => {
    const pem = certificateOf(server)
    const read = new X509Certificate(pem)
    expect(`ed25519:${read.publicKey.export({ format: 'jwk' }).x}`).toBe(server.publicKey)
    expect(read.verify(read.publicKey)).toBe(true)
    expect(read.validTo).toMatch(/9999/)
    expect(certificateOf(server)).toBe(pem)
  })
})

describe('a TLS listener', () => {
  let listener: ChannelListener
  let port = 0
  const taken: Channel[] = []
  let next = deferred<Channel>()
  beforeAll(async () => {
    listener = await listenTls({
      host,
      port: 0,
      key: server,
      handshakeTimeout: 500,
      onChannel: (channel) => {
        taken.push(channel)
        next.resolve(channel)
        next = deferred()
      },
    })
    port = portOf(listener)
  })
  afterAll(async () => {
    await listener.close()
    await Promise.all(taken.map((channel) => channel.close()))
  })

  /** It serves on, whatever was done to it. */
  async function serves(): Promise<void> {
    const arrived = next.promise
    const near = await connectTls({ host, port, key: client, peer: server.publicKey })
    const far = await arrived
    near.write(new Uint8Array([1]))
    expect([...((await far.read()) ?? [])]).toEqual([1])
    await Promise.all([near.close(), far.close()])
  }

  /** A client of node:tls, without our manners; resolves when the connection is over, with what ended it. */
  async function handshake(options: ConnectionOptions): Promise<{ error?: NodeJS.ErrnoException; reused: boolean }> {
    const socket = connect({ host, port, rejectUnauthorized: false, ...options })
    let reused = false
    socket.once('secureConnect', () => {
      reused = socket.isSessionReused()
    })
    socket.resume()
    let error: NodeJS.ErrnoException | undefined
    socket.on('error', (cause) => {
      error = cause
    })
    await closed(socket)
    return { reused, ...(error === undefined ? {} : { error }) }
  }

  const credentials = { key: client.exportPem(), cert: certificateOf(client) }

  it('knows each peer by the key it proved, and both ends of a connection have a binding of their own', async () => {
    const arrived = next.promise
    const near = await connectTls({ host, port, key: client, peer: server.publicKey })
    const far = await arrived
    expect(far.peer).toMatchObject({
      kind: 'tls',
      key: client.publicKey,
      address: expect.stringMatching(/^127\.0\.0\.1:/),
    })
    expect(near.peer).toMatchObject({ kind: 'tls', key: server.publicKey })
    const again = next.promise
    const other = await connectTls({ host, port, key: client, peer: server.publicKey })
    const otherFar = await again
    expect(Buffer.from(near.binding).equals(far.binding)).toBe(true)
    expect(Buffer.from(near.binding).equals(other.binding)).toBe(false)
    await Promise.all([near, far, other, otherFar].map((channel) => channel.close()))
  })

  it('carries a session', async () => {
    const { RpcTarget } = await import('capnweb')
    class Echo extends RpcTarget {
      echo(value: unknown) {
        return value
      }
    }
    const arrived = next.promise
    const near = openSession<Echo>(await connectTls({ host, port, key: client, peer: server.publicKey }))
    const far = openSession<undefined>(await arrived, { main: new Echo() })
    const bytes = new Uint8Array(3_000_000).map((_, i) => i)
    const back = await near.settle(near.remote.echo(bytes) as unknown as PromiseLike<Uint8Array>)
    expect(Buffer.from(bytes).equals(back)).toBe(true)
    await Promise.all([near.close(), far.close()])
  })

  it('is not taken for one with another key: nothing is sent to it', async () => {
    const peer = KeyPair.generate().publicKey
    const before = taken.length
    await expect(connectTls({ host, port, key: client, peer })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_DENIED' })
    // The listener may have been told of the connection before it was dropped; never of a byte.
    for (const channel of taken.slice(before)) expect(await channel.read().catch(() => undefined)).toBeUndefined()
    await serves()
  })

  it('is not taken for one where the key is shown and not held', async () => {
    // The true certificate, and another key to sign the handshake with: the TLS library of the impostor itself objects, or
    // ours does.
    const impostor = KeyPair.generate()
    const make = () =>
      createTlsServer({ key: impostor.exportPem(), cert: certificateOf(server), minVersion: 'TLSv1.3' })
    expect(make).toThrow(/key values mismatch/)
    const forged = {
      publicKey: server.publicKey,
      sign: impostor.sign.bind(impostor),
      exportPem: () => impostor.exportPem(),
    }
    await expect(listenTls({ host, port: 0, key: forged, onChannel: () => {} })).rejects.toThrow(/key values mismatch/)
  })

  it.each<[string, ConnectionOptions]>([
    ['TLS 1.2', { ...credentials, maxVersion: 'TLSv1.2' }],
    ['no certificate', {}],
    ['a certificate around another kind of key', otherKind()],
  ])('refuses %s', async (_, options) => {
    const before = taken.length
    await handshake(options)
    expect(taken.length).toBe(before)
    await serves()
  })

  it('refuses a resumed session: each connection proves its key itself', async () => {
    const first = connect({ host, port, rejectUnauthorized: false, ...credentials })
    first.on('error', () => undefined)
    const [session] = (await once(first, 'session')) as [Buffer]
    first.destroy()
    while (taken.length === 0) await new Promise((resolve) => setImmediate(resolve))
    const before = taken.length
    expect((await handshake({ ...credentials, session })).reused).toBe(true)
    expect(taken.length).toBe(before)
    await serves()
  })

  it('cuts off what is no TLS', async () => {
    for (const noise of [Buffer.from('GET / HTTP/1.1\r\n\r\n'), Buffer.alloc(100_000, 0xff), Buffer.from([22, 3, 1])]) {
      const socket = connectTcp({ host, port })
      socket.resume()
      socket.on('error', () => undefined)
      socket.end(noise)
      await closed(socket)
    }
    await serves()
  })

  it('waits for no handshake that stalls, and for few at once', async () => {
    // Sixty that say nothing, and one that says a byte of a record now and then.
    const began = performance.now()
    const stalled = Array.from({ length: 60 }, () => connectTcp({ host, port }))
    for (const socket of stalled) {
      socket.on('error', () => undefined)
      socket.resume()
    }
    const slow = stalled[0] as (typeof stalled)[0]
    const drip = setInterval(() => slow.write(Buffer.from([22])), 100)
    const closings = stalled.map((socket) => closed(socket).then(() => performance.now() - began))
    const at = await Promise.all(closings)
    clearInterval(drip)
    // Those past the number that is taken from one address went at once, the others when their time was over.
    expect(at.filter((ms) => ms < 450).length).toBeGreaterThanOrEqual(60 - 32)
    expect(at.filter((ms) => ms >= 450).length).toBeGreaterThan(0)
    expect(Math.max(...at)).toBeLessThan(20_000)
    await serves()
  })
})

describe('connecting', () => {
  it('says what is wrong', async () => {
    const accepted: Socket[] = []
    const free = createServer((socket) => accepted.push(socket)).listen(0, host)
    await once(free, 'listening')
    const { port } = free.address() as { port: number }
    const silent = { host, port, key: client, peer: server.publicKey }
    await expect(connectTls({ ...silent, timeout: 100 })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_TIMEOUT' })
    await expect(connectTls({ ...silent, signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_ABORTED',
    })
    for (const socket of accepted) socket.destroy()
    free.close()
    await closed(free)
    await expect(connectTls(silent)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
    await expect(connectTls({ ...silent, prot: 1 } as never)).rejects.toThrow(/did you mean 'port'/)
    await expect(listenTls({ host: '203.0.113.1', port: 0, key: server, onChannel: () => {} })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_INVALID_ARGUMENT',
    })
  })

  it('by an endpoint needs both keys', async () => {
    const listener = await listenTls({ host, port: 0, key: server, onChannel: (channel) => channel.close() })
    const { address } = listener
    await expect(connectEndpoint(address, { key: client })).rejects.toThrow(/other side's public key/)
    await expect(connectEndpoint(`${address}#${server.publicKey}`)).rejects.toThrow(/key of this side/)
    const other = KeyPair.generate().publicKey
    const both = connectEndpoint(`${address}#${server.publicKey}`, { key: client, peer: other })
    await expect(both).rejects.toThrow(/another key/)
    const channel = await connectEndpoint(`${address}#${server.publicKey}`, { key: client })
    expect(await channel.read()).toBeUndefined()
    await channel.close()
    await listener.close()
  })
})

describe('an endpoint', () => {
  it('is read in each of its forms, and no other', () => {
    expect(parseEndpoint('/run/x.sock')).toEqual({ kind: 'unix', path: '/run/x.sock' })
    expect(parseEndpoint('unix:x.sock')).toEqual({ kind: 'unix', path: 'x.sock' })
    expect(parseEndpoint('tls:example.org:7443')).toEqual({ kind: 'tls', host: 'example.org', port: 7443 })
    const { publicKey } = server
    const v6 = { kind: 'tls', host: '::1', port: 1, peer: publicKey }
    expect(parseEndpoint(`tls:[::1]:1#${publicKey}`)).toEqual(v6)
    for (const wrong of ['', 'tls:', 'tls:x', 'tls:x:99999', 'tls:a b:1', 'tls:x:1#ed25519:short', 'http://x', 'a\0b'])
      expect(() => parseEndpoint(wrong), wrong).toThrow(/endpoint|transport/)
  })
})

/** Resolves when it has closed, for whatever reason. */
function closed(emitter: EventEmitter): Promise<void> {
  return new Promise((resolve) => emitter.once('close', () => resolve()))
}

/** A certificate made by OpenSSL's rules around a key of NIST P-256, or undefined fields where that can not be made. */
function otherKind(): ConnectionOptions {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const spki = publicKey.export({ format: 'der', type: 'spki' })
  return { key: privateKey.export({ format: 'pem', type: 'pkcs8' }) as string, cert: p256Certificate(spki) }
}

/** Our certificate with its key replaced; its signature is then nobody's, and nobody looks at it. */
function p256Certificate(spki: Buffer): string {
  const der = Buffer.from(new X509Certificate(certificateOf(client)).raw)
  const ours = new X509Certificate(der).publicKey.export({ format: 'der', type: 'spki' })
  const at = der.indexOf(ours)
  const grown = Buffer.concat([der.subarray(0, at), spki, der.subarray(at + ours.length)])
  // Two lengths stand around it: of the certificate and of what is signed, both in the one-byte long form.
  const more = spki.length - ours.length
  const sizes = { outer: der.readUInt8(2) + more, inner: der.readUInt8(5) + more }
  const body = grown.subarray(6)
  const lengthOf = (n: number) => (n < 0x100 ? [0x81, n] : [0x82, n >> 8, n & 0xff])
  const inner = Buffer.concat([Buffer.from([0x30, ...lengthOf(sizes.inner)]), body.subarray(0, sizes.inner)])
  const whole = Buffer.concat([inner, body.subarray(sizes.inner)])
  const out = Buffer.concat([Buffer.from([0x30, ...lengthOf(whole.length)]), whole])
  return `-----BEGIN CERTIFICATE-----\n${out.toString('base64')}\n-----END CERTIFICATE-----\n`
}
