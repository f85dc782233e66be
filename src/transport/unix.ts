import { createHash } from 'node:crypto'
import { chmod, lstat, mkdir, mkdtemp, rename, rm, stat, unlink } from 'node:fs/promises'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { basename, dirname, join, resolve } from 'node:path'
import { CloudAppError } from '../errors.js'
import { type PeerCredentials, peerCredentials } from '../native/libc.js'
import { checkOptions } from '../options.js'
import type { Channel, ChannelListener, PeerIdentity } from './channel.js'

/** sun_path of struct sockaddr_un less its final zero: include/uapi/linux/un.h. */
const SUN_PATH = 107

/** How long a peer that does not read may hold up {@link Channel.close}, in ms. */
const LINGER = 1000

/** Bytes queued for the kernel before `write` answers false. */
const HIGH_WATER = 256 * 1024

export interface ListenUnixOptions {
  /** Where the socket is made; its folder is made too if missing. */
  readonly path: string
  /** Permissions of the socket: who may connect. 0o600 (only this user) by default. */
  readonly mode?: number
  /** Called for each connection, which then belongs to the callee. */
  readonly onChannel: (channel: Channel) => void
  /** At most so many connections at once; further ones are closed at once. 256 by default. */
  readonly maxChannels?: number
}

export interface ConnectUnixOptions {
  readonly path: string
  /** ms until ERR_CLOUDAPP_TIMEOUT. 10,000 by default. */
  readonly timeout?: number
  readonly signal?: AbortSignal
}

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

class UnixChannel implements Channel {
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

/**
 * Listens on a unix socket. The socket appears at `path` with its permissions already set; one that a dead process left
 * there is replaced, a living one is not.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` if something else is at `path`, somebody listens there, or it is
 *   too long.
 */
export async function listenUnix(options: ListenUnixOptions): Promise<ChannelListener> {
  checkOptions('listenUnix', options, ['path', 'mode', 'onChannel', 'maxChannels'])
  const path = resolve(options.path)
  const folder = dirname(path)
  await mkdir(folder, { recursive: true, mode: 0o755 })
  await refuseLiving(path)
  // Made inside a folder only we can enter and moved into place, so that nobody connects before the mode is set.
  const nursery = await mkdtemp(join(folder, `.${basename(path).slice(0, 8)}-`))
  const born = join(nursery, 's')
  const server = createServer({ pauseOnConnect: false, allowHalfOpen: true })
  server.maxConnections = options.maxChannels ?? 256
  try {
    const longest = Math.max(Buffer.byteLength(born), Buffer.byteLength(path))
    if (longest > SUN_PATH) {
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `The socket's path is too long for Linux: ${path}`, {
        details: { bytes: longest, limit: SUN_PATH },
      })
    }
    server.on('connection', (socket) => accept(socket, options.onChannel))
    await new Promise<void>((done, fail) => {
      server.once('error', fail)
      server.listen(born, () => {
        server.off('error', fail)
        done()
      })
    })
    await chmod(born, options.mode ?? 0o600)
    await rename(born, path)
  } catch (error) {
    server.close()
    await rm(nursery, { recursive: true, force: true })
    throw error
  }
  await rm(nursery, { recursive: true, force: true })
  return new UnixListener(server, path, (await stat(path)).ino)
}

function accept(socket: Socket, onChannel: (channel: Channel) => void): void {
  let channel: UnixChannel
  try {
    channel = new UnixChannel(socket, 'server')
  } catch {
    // A peer gone before it could be identified is nobody.
    socket.destroy()
    return
  }
  onChannel(channel)
}

class UnixListener implements ChannelListener {
  #closing: Promise<void> | undefined

  constructor(
    readonly server: Server,
    readonly address: string,
    readonly inode: number,
  ) {}

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    // Not awaited: the server's close event waits for channels, which live on.
    this.server.close()
    const there = await lstat(this.address).catch(() => undefined)
    if (there?.ino === this.inode) await unlink(this.address).catch(() => undefined)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/** Refuses a path where something other than a dead socket is. */
async function refuseLiving(path: string): Promise<void> {
  const there = await lstat(path).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') return undefined
    throw cause
  })
  if (there === undefined) return
  if (!there.isSocket()) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${path} exists and is not a socket`)
  }
  const living = await new Promise<boolean>((done) => {
    const probe = connect(path)
    probe.once('connect', () => {
      probe.destroy()
      done(true)
    })
    probe.once('error', (error: NodeJS.ErrnoException) =>
      done(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT'),
    )
  })
  if (living) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `Another process listens on ${path}`)
}

/**
 * Connects to a unix socket. The channel's binding names both processes by uid and pid as the kernel reports them to
 * each other (SO_PEERCRED): a relay in between changes it. It needs both ends in one pid and user namespace.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` if nobody listens there, `ERR_CLOUDAPP_DENIED` if the socket's
 *   permissions forbid it, `ERR_CLOUDAPP_TIMEOUT`, `ERR_CLOUDAPP_ABORTED`.
 */
export async function connectUnix(options: ConnectUnixOptions): Promise<Channel> {
  checkOptions('connectUnix', options, ['path', 'timeout', 'signal'])
  const { path, signal, timeout = 10_000 } = options
  if (signal?.aborted)
    throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'Connecting was aborted', { cause: signal.reason })
  const socket = connect({ path, allowHalfOpen: true })
  let timer: NodeJS.Timeout | undefined
  let onAbort: (() => void) | undefined
  try {
    await new Promise<void>((done, fail) => {
      socket.once('connect', done)
      socket.once('error', (cause: NodeJS.ErrnoException) => fail(connectError(path, cause)))
      timer = setTimeout(() => {
        fail(new CloudAppError('ERR_CLOUDAPP_TIMEOUT', `${path} did not answer within ${timeout} ms`))
      }, timeout)
      onAbort = () =>
        fail(new CloudAppError('ERR_CLOUDAPP_ABORTED', 'Connecting was aborted', { cause: signal?.reason }))
      signal?.addEventListener('abort', onAbort)
    })
  } catch (error) {
    socket.destroy()
    throw error
  } finally {
    clearTimeout(timer)
    if (onAbort) signal?.removeEventListener('abort', onAbort)
  }
  socket.removeAllListeners('error')
  return new UnixChannel(socket, 'client')
}

function connectError(path: string, cause: NodeJS.ErrnoException): CloudAppError {
  if (cause.code === 'ENOENT' || cause.code === 'ECONNREFUSED') {
    return new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `Nobody listens on ${path}`, { cause })
  }
  if (cause.code === 'EACCES' || cause.code === 'EPERM') {
    return new CloudAppError('ERR_CLOUDAPP_DENIED', `This user may not connect to ${path}`, { cause })
  }
  return new CloudAppError('ERR_CLOUDAPP_CLOSED', `Connecting to ${path} failed: ${cause.message}`, { cause })
}
