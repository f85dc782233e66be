import { createHash } from 'node:crypto'
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
export function attach(
  neighbours: Neighbours,
  channel: VchanChannel,
  domid: number,
  key: string | undefined,
): VchanChannel {
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
 * Both domains as the hypervisor numbers them, and the page and port between them: a relay in a third domain would have
 * others.
 */
export function bindingOf(server: number, client: number, { ref, port }: { ref: number; port: number }): Uint8Array {
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
