import { createHash } from 'node:crypto'
import type { Socket } from 'node:net'
import { CloudAppError } from '../errors.js'
import { type PeerCredentials, peerCredentials } from '../native/libc.js'
import type { Channel, PeerIdentity } from './channel.js'

/** How long a peer that does not read may hold up {@link Channel.close}, in ms. */
const LINGER = 1000

/** Bytes queued for the kernel before `write` answers false. */
const HIGH_WATER = 256 * 1024

/**
 * The binding of a unix connection: a hash over who listens and who connected, as uid and pid. Each end knows itself and
 * asks the kernel for the other, so a relay (another process, hence another pid) makes the two ends compute different
 * bytes. It does not tell apart two connections between the same two processes; the nonces of the proof do that. Both
 * ends must live in one pid and one user namespace, or they see different numbers.
 */
function unixBinding(server: Omit<PeerCredentials, 'gid'>, client: Omit<PeerCredentials, 'gid'>): Uint8Array {
  const text = `cloudapp unix binding v1\0${server.uid} ${server.pid}\0${client.uid} ${client.pid}`
  return new Uint8Array(createHash('sha256').update(text).digest())
}

/** A connected unix socket as a {@link Channel}. */
export class UnixChannel implements Channel {
  /** Its numbers are asked for when they are read: who only connects needs no native call. */
  readonly peer: PeerIdentity
  readonly #socket: Socket
  readonly #role: 'server' | 'client'
  readonly #closed = new AbortController()
  #credentials: PeerCredentials | undefined
  #reader: { resolve(chunk: Uint8Array | undefined): void; reject(error: unknown): void } | undefined
  #ended = false
  #corked = false
  #draining: (() => void)[] = []
  #closing: Promise<void> | undefined

  constructor(socket: Socket, role: 'server' | 'client') {
    this.#socket = socket
    this.#role = role
    const ask = () => this.#peer()
    this.peer = {
      kind: 'unix',
      get uid() {
        return ask().uid
      },
      get gid() {
        return ask().gid
      },
      get pid() {
        return ask().pid
      },
    }
    socket.on('readable', () => this.#give())
    socket.on('end', () => {
      this.#ended = true
      this.#give()
    })
    socket.on('drain', () => this.#wake())
    socket.on('error', (cause) => {
      this.#finish(new CloudAppError('ERR_CLOUDAPP_CLOSED', `The connection broke: ${cause.message}`, { cause }))
    })
    socket.on('close', () => this.#finish(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The channel is closed')))
    // The server is the one who decides by identity: taken at once, while the descriptor surely lives.
    if (role === 'server') this.#credentials = this.#ask()
  }

  get binding(): Uint8Array {
    const peer = this.#peer()
    if (peer.pid === 0) {
      throw new CloudAppError(
        'ERR_CLOUDAPP_UNSUPPORTED',
        'The peer lives in another pid namespace: a unix connection to it can not be bound to a proof of possession',
      )
    }
    const self = { uid: process.getuid?.() ?? -1, pid: process.pid }
    return this.#role === 'server' ? unixBinding(self, peer) : unixBinding(peer, self)
  }

  get closed(): AbortSignal {
    return this.#closed.signal
  }

  get queued(): number {
    return this.#socket.writableLength
  }

  read(): Promise<Uint8Array | undefined> {
    if (this.#reader !== undefined) {
      return Promise.reject(new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'Channel: one read at a time'))
    }
    if (this.#closing !== undefined) return Promise.reject(closedHere())
    const chunk = this.#socket.read() as Buffer | null
    if (chunk !== null) return Promise.resolve(asBytes(chunk))
    if (this.#ended) return Promise.resolve(undefined)
    if (this.#closed.signal.aborted) return Promise.reject(this.#closed.signal.reason)
    return new Promise((resolve, reject) => {
      this.#reader = { resolve, reject }
    })
  }

  write(bytes: Uint8Array): boolean {
    if (this.#closing !== undefined || this.#closed.signal.aborted) return true
    // What is written in one turn goes to the kernel in one call.
    if (!this.#corked) {
      this.#corked = true
      this.#socket.cork()
      process.nextTick(() => {
        this.#corked = false
        this.#socket.uncork()
      })
    }
    this.#socket.write(bytes)
    return this.#socket.writableLength < HIGH_WATER
  }

  drained(): Promise<void> {
    if (this.#closed.signal.aborted || !this.#socket.writableNeedDrain) return Promise.resolve()
    return new Promise((resolve) => this.#draining.push(resolve))
  }

  close(): Promise<void> {
    this.#closing ??= new Promise((done) => {
      this.#reader?.reject(closedHere())
      this.#reader = undefined
      if (this.#socket.destroyed) return done()
      const linger = setTimeout(() => this.#socket.destroy(), LINGER)
      this.#socket.once('close', () => {
        clearTimeout(linger)
        done()
      })
      this.#socket.end(() => this.#socket.destroy())
    })
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #peer(): PeerCredentials {
    this.#credentials ??= this.#ask()
    return this.#credentials
  }

  #ask(): PeerCredentials {
    // Node has no public way to the descriptor of a socket; `_handle.fd` has been it since Node 0.x.
    const fd = (this.#socket as unknown as { _handle?: { fd?: number } | null })._handle?.fd
    if (fd === undefined || fd < 0) throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The channel is closed')
    return peerCredentials(fd)
  }

  #give(): void {
    const reader = this.#reader
    if (reader === undefined) return
    const chunk = this.#socket.read() as Buffer | null
    if (chunk === null && !this.#ended) return
    this.#reader = undefined
    reader.resolve(chunk === null ? undefined : asBytes(chunk))
  }

  #finish(reason: CloudAppError): void {
    if (this.#closed.signal.aborted) return
    this.#closed.abort(reason)
    const reader = this.#reader
    this.#reader = undefined
    if (this.#ended) reader?.resolve(undefined)
    else reader?.reject(reason)
    this.#wake()
  }

  #wake(): void {
    const draining = this.#draining
    this.#draining = []
    for (const resolve of draining) resolve()
  }
}

function closedHere(): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The channel is closed')
}

function asBytes(chunk: Buffer): Uint8Array {
  return new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength)
}
