import { chmod, lstat, mkdir, mkdtemp, rename, rm, stat, unlink } from 'node:fs/promises'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { basename, dirname, join, resolve } from 'node:path'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import type { Channel, ChannelListener } from './channel.js'
import { unixChannel } from './unix-channel.js'

/** sun_path of struct sockaddr_un less its final zero: include/uapi/linux/un.h. */
const SUN_PATH = 107

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
  let channel: Channel
  try {
    channel = unixChannel(socket, 'server')
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
  return unixChannel(socket, 'client')
}

function connectError(path: string, cause: NodeJS.ErrnoException): CloudAppError {
  if (cause.code === 'ENOENT' || cause.code === 'ECONNREFUSED') {
    return new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `Nobody listens on ${path}`, {
      details: { reason: 'not-listening' },
      cause,
    })
  }
  if (cause.code === 'EACCES' || cause.code === 'EPERM') {
    return new CloudAppError('ERR_CLOUDAPP_DENIED', `This user may not connect to ${path}`, { cause })
  }
  return new CloudAppError('ERR_CLOUDAPP_CLOSED', `Connecting to ${path} failed: ${cause.message}`, { cause })
}
