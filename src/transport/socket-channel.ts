import type { Socket } from 'node:net'
import { CloudAppError } from '../errors.js'
import type { Channel, PeerIdentity } from './channel.js'

/** How long a peer that does not read, or does not end, may hold up {@link Channel.close}, in ms. */
const LINGER = 1000

/** Bytes queued for the kernel before `write` answers false. */
const HIGH_WATER = 256 * 1024

/** What a transport knows of a connected socket. */
export interface SocketFacts {
  readonly peer: PeerIdentity
  /** Asked for when it is needed: who only talks needs none. */
  binding(): Uint8Array
  /**
   * True where the kernel drops what it has not sent yet when a socket is closed with unread bytes in it (TCP, RFC 1122,
   * 4.2.2.13): closing then reads on until the peer has ended too.
   */
  readonly readToEnd: boolean
}

/** A connected stream socket, bare or with TLS over it, as a {@link Channel}. */
export class SocketChannel implements Channel {
  readonly #socket: Socket
  readonly #facts: SocketFacts
  readonly #closed = new AbortController()
  #reader: { resolve(chunk: Uint8Array | undefined): void; reject(error: unknown): void } | undefined
  #ended = false
  #corked = false
  #draining: (() => void)[] = []
  #closing: Promise<void> | undefined

  constructor(socket: Socket, facts: SocketFacts) {
    this.#socket = socket
    this.#facts = facts
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
  }

  get peer(): PeerIdentity {
    return this.#facts.peer
  }

  get binding(): Uint8Array {
    return this.#facts.binding()
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
    const { destroyed, writableEnded, writableLength, writableNeedDrain } = this.#socket
    // Of a socket that ends or broke, Node no longer says that it needs to drain, and tells nothing but its close.
    const leaving = (destroyed || writableEnded) && writableLength > 0
    if (this.#closed.signal.aborted || !(writableNeedDrain || leaving)) return Promise.resolve()
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
      this.#socket.end(() => this.#leave())
    })
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #leave(): void {
    const socket = this.#socket
    if (!this.#facts.readToEnd || this.#ended) {
      socket.destroy()
      return
    }
    socket.once('end', () => socket.destroy())
    socket.removeAllListeners('readable')
    socket.resume()
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
