import type { Socket } from 'node:net'
import { connect, createServer, type Server, type TLSSocket } from 'node:tls'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import type { Channel, ChannelListener } from './channel.js'
import { SocketChannel } from './socket-channel.js'
import { certificateOf, type TlsKey } from './tls-certificate.js'

export type { TlsKey } from './tls-certificate.js'

/** What both ends insist on. TLS 1.3 has no renegotiation, and hides certificates from who only listens in. */
const VERSION = { minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3' } as const

/** RFC 9266, 4.2: unique for each connection; a peer between two connections has two. */
const EXPORTER = 'EXPORTER-Channel-Binding'

/** Handshakes of one address at once, and how long one may take: a peer that stalls costs little and soon nothing. */
const MAX_HANDSHAKES = 32
const HANDSHAKE_MS = 10_000

export interface ListenTlsOptions {
  /** Address or name to listen on. */
  readonly host: string
  /** 0 for any that is free. */
  readonly port: number
  /** The listener's own key, which peers pin. */
  readonly key: TlsKey
  /** Called for each connection whose peer has proved its key; it then belongs to the callee, who decides by that key. */
  readonly onChannel: (channel: Channel) => void
  /** At most so many connections at once; further ones are closed at once. 256 by default. */
  readonly maxChannels?: number
  /** ms a handshake may take. 10,000 by default. */
  readonly handshakeTimeout?: number
}

export interface ConnectTlsOptions {
  readonly host: string
  readonly port: number
  /** This side's key: what the listener knows it by. */
  readonly key: TlsKey
  /** The key that the other side must have. */
  readonly peer: string
  /** ms until ERR_CLOUDAPP_TIMEOUT. 10,000 by default. */
  readonly timeout?: number
  readonly signal?: AbortSignal
}

/**
 * Listens for TLS 1.3 over TCP. Every peer must show an Ed25519 key and prove that it has the private half; which keys are
 * welcome is the callee's business. Nothing is resumed, so that each connection has proved its key itself.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` if the address can not be listened on.
 */
export async function listenTls(options: ListenTlsOptions): Promise<ChannelListener> {
  checkOptions('listenTls', options, ['host', 'port', 'key', 'onChannel', 'maxChannels', 'handshakeTimeout'])
  const { host, port, key } = options
  const server = createServer({
    key: key.exportPem(),
    cert: certificateOf(key),
    ...VERSION,
    requestCert: true,
    // Chains and names say nothing here: the key is compared by who decides. That the peer has it is checked all the same.
    rejectUnauthorized: false,
    allowHalfOpen: true,
    handshakeTimeout: options.handshakeTimeout ?? HANDSHAKE_MS,
  })
  server.maxConnections = options.maxChannels ?? 256
  const handshakes = new Handshakes()
  server.on('connection', (socket) => handshakes.began(socket))
  server.on('secureConnection', (socket) => {
    handshakes.done(socket)
    const channel = channelOf(socket)
    if (channel === undefined) socket.destroy()
    else options.onChannel(channel)
  })
  // Peers that fail their handshake are nobody.
  server.on('tlsClientError', (_, socket) => socket.destroy())
  await new Promise<void>((done, fail) => {
    const failed = (cause: NodeJS.ErrnoException) =>
      fail(
        new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${host}:${port} can not be listened on (${cause.code})`, {
          cause,
        }),
      )
    server.once('error', failed)
    server.listen(port, host, () => {
      server.off('error', failed)
      done()
    })
  })
  return new TlsListener(server)
}

class TlsListener implements ChannelListener {
  readonly address: string
  readonly #server: Server

  constructor(server: Server) {
    this.#server = server
    const bound = server.address()
    this.address = typeof bound === 'object' && bound !== null ? `tls:${hostPort(bound.address, bound.port)}` : 'tls:'
  }

  async close(): Promise<void> {
    // Not awaited: the server's close event waits for channels, which live on.
    this.#server.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/** Connections that have not finished their handshake, by address. */
class Handshakes {
  readonly #of = new Map<string, Set<number>>()

  began(socket: Socket): void {
    const { remoteAddress: address, remotePort: port } = socket
    const ports = (address !== undefined && this.#of.get(address)) || new Set<number>()
    if (address === undefined || port === undefined || ports.size >= MAX_HANDSHAKES) {
      socket.destroy()
      return
    }
    ports.add(port)
    this.#of.set(address, ports)
    socket.once('close', () => this.#end(address, port))
  }

  done(socket: TLSSocket): void {
    this.#end(socket.remoteAddress ?? '', socket.remotePort ?? 0)
  }

  #end(address: string, port: number): void {
    const ports = this.#of.get(address)
    ports?.delete(port)
    if (ports?.size === 0) this.#of.delete(address)
  }
}

/**
 * Connects to a listener whose key is known. The channel's peer is that key; its binding is the TLS exporter of RFC 9266.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` if nobody listens there, `ERR_CLOUDAPP_DENIED` if who does has another key,
 *   `ERR_CLOUDAPP_TIMEOUT`, `ERR_CLOUDAPP_ABORTED`, `ERR_CLOUDAPP_CLOSED` if it ends or speaks no TLS 1.3.
 */
export async function connectTls(options: ConnectTlsOptions): Promise<Channel> {
  checkOptions('connectTls', options, ['host', 'port', 'key', 'peer', 'timeout', 'signal'])
  const { host, port, key, signal, timeout = HANDSHAKE_MS } = options
  const where = hostPort(host, port)
  const aborted = () => new CloudAppError('ERR_CLOUDAPP_ABORTED', 'Connecting was aborted', { cause: signal?.reason })
  if (signal?.aborted) throw aborted()
  // Node takes it for TLS as for TCP; its types do not say so.
  const halfOpen = { allowHalfOpen: true }
  const socket = connect({
    ...halfOpen,
    host,
    port,
    key: key.exportPem(),
    cert: certificateOf(key),
    ...VERSION,
    // The key is compared below, before a byte is sent.
    rejectUnauthorized: false,
    checkServerIdentity: () => undefined,
  })
  let timer: NodeJS.Timeout | undefined
  let onAbort: (() => void) | undefined
  try {
    await new Promise<void>((done, fail) => {
      socket.once('secureConnect', done)
      socket.once('error', (cause: NodeJS.ErrnoException) => fail(connectError(where, cause)))
      socket.once('close', () => fail(new CloudAppError('ERR_CLOUDAPP_CLOSED', `${where} ended the handshake`)))
      timer = setTimeout(() => {
        fail(new CloudAppError('ERR_CLOUDAPP_TIMEOUT', `${where} did not answer within ${timeout} ms`))
      }, timeout)
      onAbort = () => fail(aborted())
      signal?.addEventListener('abort', onAbort)
    })
    const channel = channelOf(socket)
    if (channel?.peer.kind !== 'tls' || channel.peer.key !== options.peer) {
      const seen = channel?.peer.kind === 'tls' ? channel.peer.key : 'none of ours'
      throw new CloudAppError('ERR_CLOUDAPP_DENIED', `${where} has the key ${seen}, not ${options.peer}`)
    }
    return channel
  } catch (error) {
    socket.on('error', () => undefined)
    socket.destroy()
    throw error
  } finally {
    clearTimeout(timer)
    if (onAbort) signal?.removeEventListener('abort', onAbort)
    socket.removeAllListeners('secureConnect')
  }
}

/** Undefined for a peer without an Ed25519 key of its own. */
function channelOf(socket: TLSSocket): Channel | undefined {
  const key = keyOf(socket)
  if (key === undefined || socket.getProtocol() !== 'TLSv1.3' || socket.isSessionReused()) return undefined
  // Taken now: it can not be had from a socket that has closed.
  const exporter = new Uint8Array(socket.exportKeyingMaterial(32, EXPORTER, Buffer.alloc(0)))
  const address = hostPort(socket.remoteAddress ?? '', socket.remotePort ?? 0)
  socket.setNoDelay(true)
  return new SocketChannel(socket, {
    peer: { kind: 'tls', key, address },
    binding: () => exporter,
    readToEnd: true,
  })
}

function keyOf(socket: TLSSocket): `ed25519:${string}` | undefined {
  try {
    const key = socket.getPeerX509Certificate()?.publicKey
    if (key?.asymmetricKeyType !== 'ed25519') return undefined
    const { x } = key.export({ format: 'jwk' })
    return x === undefined ? undefined : `ed25519:${x}`
  } catch {
    // A certificate around something that is no key.
    return undefined
  }
}

function connectError(where: string, cause: NodeJS.ErrnoException): CloudAppError {
  if (['ECONNREFUSED', 'ENOTFOUND', 'EHOSTUNREACH', 'ENETUNREACH'].includes(cause.code ?? '')) {
    return new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `Nobody listens on ${where} (${cause.code})`, {
      details: { reason: 'not-listening' },
      cause,
    })
  }
  return new CloudAppError('ERR_CLOUDAPP_CLOSED', `Connecting to ${where} failed: ${cause.message}`, { cause })
}

function hostPort(host: string, port: number): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}
