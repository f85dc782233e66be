import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { CloudAppError } from '../../errors.js'
import { checked, loadShim } from '../../native/shim.js'
import { checkOptions } from '../../options.js'
import type { Channel, ChannelListener } from '../channel.js'
import { domainLives, Neighbours } from './neighbours.js'
import { VchanChannel, vchanInfo } from './vchan-channel.js'
import { wakeCost } from './wake-cost.js'
import type { XenStore } from './xenstore.js'

/** Bytes of each of the two rings, if nothing else is asked for: 33 grants of the server's domain. */
export const VCHAN_RING = 64 * 1024

/** How long until an attempt that failed is repeated though xenstore told of no change, in ms. */
const AGAIN = 200

export interface ServeVchanOptions {
  /** The domain that may connect, by number. */
  readonly domid: number
  /** Where in xenstore the client finds it; below this domain's own folder unless it begins with a slash. */
  readonly path: string
  /** Bytes of each ring: 1 KiB to 1 MiB, made a power of two. 64 KiB by default. */
  readonly ring?: number
  /** Called when the client has come; the channel then belongs to the callee. After its end the next one may come. */
  readonly onChannel: (channel: Channel) => void
  /** Told why there will be no next one. The peer's domain having ended is no error. */
  readonly onError?: (error: CloudAppError) => void
}

export interface ConnectVchanOptions {
  /** The server's domain, by number. */
  readonly domid: number
  /** The whole path in xenstore, as the server has it. */
  readonly path: string
  /** ms until ERR_CLOUDAPP_NOT_FOUND if no server is there. 10,000 by default. */
  readonly timeout?: number
  readonly signal?: AbortSignal
}

/**
 * The server's end of a vchan, for one other domain; wire-compatible with libxenvchan. Serves one client at a time, again
 * and again, until it is closed or that domain has ended.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` outside Xen; `ERR_CLOUDAPP_LIMIT` when no grants are left;
 *   `ERR_CLOUDAPP_NOT_FOUND` if there is no such domain.
 */
export async function serveVchan(options: ServeVchanOptions): Promise<ChannelListener> {
  checkOptions('serveVchan', options, ['domid', 'path', 'ring', 'onChannel', 'onError'])
  const neighbours = await Neighbours.acquire()
  const server = new VchanServer(neighbours, options)
  try {
    await server.start()
  } catch (error) {
    await server.close()
    throw error
  }
  return server
}

class VchanServer implements ChannelListener {
  readonly #neighbours: Neighbours
  readonly #options: ServeVchanOptions
  readonly #stop = new AbortController()
  #running: Promise<void> | undefined
  #closing: Promise<void> | undefined

  constructor(neighbours: Neighbours, options: ServeVchanOptions) {
    this.#neighbours = neighbours
    this.#options = options
  }

  get address(): string {
    const { domid, path } = this.#options
    return `vchan:${domid} at ${path}`
  }

  async start(): Promise<void> {
    const { domid } = this.#options
    if (!domainLives(domid)) {
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `There is no domain ${domid}`)
    }
    const first = await this.#offer()
    this.#running = this.#run(first).catch((error: CloudAppError) => this.#options.onError?.(error))
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(): Promise<void> {
    this.#stop.abort()
    await this.#running
    await this.#neighbours.release()
  }

  async #run(first: VchanChannel): Promise<void> {
    const { signal } = this.#stop
    for (let channel = first; ; channel = await this.#offer()) {
      const stop = () => void channel.close()
      signal.addEventListener('abort', stop)
      const came = await channel.connected.then(
        () => true,
        () => false,
      )
      signal.removeEventListener('abort', stop)
      if (came) {
        this.#options.onChannel(channel)
        await ended(channel.closed, signal)
        // The channel of a server that is closed lives on, and the client sees by the keys that this domain does.
        if (!channel.closed.aborted) return this.#withdrawAfter(channel)
      }
      await this.#withdraw()
      // Of a domain that has ended nobody comes.
      if (signal.aborted || !domainLives(this.#options.domid)) return
    }
  }

  async #offer(): Promise<VchanChannel> {
    const { domid, ring = VCHAN_RING } = this.#options
    const shim = loadShim()
    const words = new Uint32Array(8)
    const handle = checked(shim, shim.ca_vchan_serve(domid, ring, ring, new Uint8Array(words.buffer)))
    const info = vchanInfo(words)
    const { local, store } = this.#neighbours
    const peer = { kind: 'vchan', domid, uuid: await this.#neighbours.uuidOf(domid), local } as const
    const binding = bindingOf(local.domid, domid, info)
    const wakeUs = await wakeCost(local.domid)
    const channel = attach(
      this.#neighbours,
      new VchanChannel(shim, handle, info, peer, binding, wakeUs),
      domid,
      undefined,
    )
    try {
      await publish(store, this.#options.path, { 'ring-ref': info.ref, 'event-channel': info.port }, local.domid, domid)
    } catch (error) {
      await channel.close()
      throw error
    }
    return channel
  }

  #withdrawAfter(channel: Channel): void {
    this.#neighbours.hold()
    const withdraw = () => void this.#withdraw().then(release, release)
    const release = () => this.#neighbours.release()
    channel.closed.addEventListener('abort', withdraw, { once: true })
  }

  async #withdraw(): Promise<void> {
    const { path } = this.#options
    for (const key of ['ring-ref', 'event-channel']) await this.#neighbours.store.remove(`${path}/${key}`)
  }
}

/** Ends the channel when the other domain ends, or this one is restored. */
function attach(neighbours: Neighbours, channel: VchanChannel, domid: number, key: string | undefined): VchanChannel {
  const unwatch = neighbours.watch(domid, key, (reason) => channel.fail(reason))
  // It may outlive who made it.
  neighbours.hold()
  const release = () => {
    unwatch()
    void neighbours.release()
  }
  channel.closed.addEventListener('abort', release, { once: true })
  return channel
}

/** As libxenvchan writes them: decimal numbers, readable by the client and nobody else. */
async function publish(
  store: XenStore,
  path: string,
  keys: Readonly<Record<string, number>>,
  server: number,
  client: number,
): Promise<void> {
  await store.transaction(async (transaction) => {
    for (const [key, value] of Object.entries(keys)) {
      await transaction.write(`${path}/${key}`, `${value}`)
      await transaction.setPermissions(`${path}/${key}`, [
        { domid: server, access: 'none' },
        { domid: client, access: 'read' },
      ])
    }
  })
}

/**
 * The client's end of a vchan; wire-compatible with libxenvchan. Waits for the server to be there.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` if no server came within `timeout`; `ERR_CLOUDAPP_PROTOCOL` if what it
 *   shares is malformed; `ERR_CLOUDAPP_UNSUPPORTED` outside Xen; `ERR_CLOUDAPP_ABORTED`.
 */
export async function connectVchan(options: ConnectVchanOptions): Promise<Channel> {
  checkOptions('connectVchan', options, ['domid', 'path', 'timeout', 'signal'])
  const { domid, path, timeout = 10_000, signal } = options
  const neighbours = await Neighbours.acquire()
  const limit = AbortSignal.timeout(timeout)
  const until = signal === undefined ? limit : AbortSignal.any([limit, signal])
  let last: unknown
  try {
    while (!until.aborted) {
      const channel = await attempt(neighbours, domid, path).catch((error: unknown) => {
        if (!CloudAppError.is(error) || !PASSING.has(error.code)) throw error
        last = error
        return undefined
      })
      if (channel !== undefined) return channel
      // Nobody will come who has gone: who connects can ask anew which domain it is now.
      if (!domainLives(domid)) break
      await sleep(AGAIN, undefined, { signal: until }).catch(() => undefined)
    }
  } finally {
    await neighbours.release()
  }
  if (signal?.aborted) {
    throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'Connecting was aborted', { cause: signal.reason })
  }
  const which = `of domain ${domid} at ${path}`
  const why = CloudAppError.is(last, 'ERR_CLOUDAPP_SOURCE')
    ? `The server ${which} did not take the connection within ${timeout} ms (${last.message}): it serves one client of a domain at a time; is another connected, or has it died?`
    : `No server ${which}, within ${timeout} ms or since that domain has ended`
  throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', why, { cause: last })
}

/** What a server that is about to start, or to take its next client, looks like. */
const PASSING: ReadonlySet<string> = new Set([
  'ERR_CLOUDAPP_DENIED',
  'ERR_CLOUDAPP_SOURCE',
  'ERR_CLOUDAPP_NOT_FOUND',
  'ERR_CLOUDAPP_CLOSED',
])

async function attempt(neighbours: Neighbours, domid: number, path: string): Promise<VchanChannel | undefined> {
  const { store, local } = neighbours
  const [ref, port] = await Promise.all([number(store, `${path}/ring-ref`), number(store, `${path}/event-channel`)])
  if (ref === undefined || port === undefined) return undefined
  const uuid = await neighbours.uuidOf(domid)
  const wakeUs = await wakeCost(local.domid)
  const shim = loadShim()
  const words = new Uint32Array(8)
  const handle = checked(shim, shim.ca_vchan_connect(domid, ref, port, new Uint8Array(words.buffer)))
  const peer = { kind: 'vchan', domid, uuid, local } as const
  const info = vchanInfo(words)
  const binding = bindingOf(domid, local.domid, info)
  return attach(neighbours, new VchanChannel(shim, handle, info, peer, binding, wakeUs), domid, `${path}/ring-ref`)
}

async function number(store: XenStore, path: string): Promise<number | undefined> {
  const text = await store.read(path)
  if (text === undefined) return undefined
  const value = Number(text)
  if (/^\d{1,10}$/.test(text) && value < 0xffff_ffff) return value
  throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `xenstore's ${path} is no number`)
}

/**
 * Both domains as the hypervisor numbers them, and the page and port between them: a relay in a third domain would have
 * others.
 */
function bindingOf(server: number, client: number, { ref, port }: { ref: number; port: number }): Uint8Array {
  const text = `cloudapp vchan binding v1\0${server} ${client} ${ref} ${port}`
  return new Uint8Array(createHash('sha256').update(text).digest())
}

function ended(...signals: AbortSignal[]): Promise<void> {
  return new Promise((resolve) => {
    for (const signal of signals) {
      if (signal.aborted) resolve()
      signal.addEventListener('abort', () => resolve(), { once: true })
    }
  })
}
