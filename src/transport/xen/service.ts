import { CloudAppError } from '../../errors.js'
import type { Channel, ChannelListener } from '../channel.js'
import { domainLives, Neighbours, readOwned } from './neighbours.js'
import { openShared, serveShared } from './shared-link.js'
import { serveVchan } from './vchan.js'
import type { XenStore } from './xenstore.js'

/**
 * How services are found over xenstore. dom0 writes (introductions.ts), below folders of the domains that nobody but dom0 can write to:
 *
 *     /local/domain/CLIENT/cloudapp/services/NAME = SERVER/NAME    that domain SERVER is the service NAME of CLIENT
 *     /local/domain/CLIENT/cloudapp/peers/SERVER  = uuid of SERVER
 *     /local/domain/SERVER/cloudapp/peers/CLIENT  = uuid of CLIENT  that SERVER is to serve it
 *
 * So no domain can pose as a service, nor as another domain's number. The server publishes its vchan for each client at
 *
 *     /local/domain/SERVER/data/cloudapp/NAME/CLIENT/{ring-ref,event-channel}
 *
 * There is one for a service and a domain, with many streams inside it (link.ts), which all programs of the client's domain
 * share (shared-link.ts).
 */
const NAME = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/

/** Domains one service is offered to at once: each takes a vchan of its own. */
const PEERS = 64

/** How long until a peer that could not be served is tried again, in ms. */
const AGAIN = 5000

const folder = (server: number, name: string, client: number) =>
  `/local/domain/${server}/data/cloudapp/${name}/${client}`

export interface VchanService {
  /** The service's name, in lower case. */
  readonly name: string
  /** The other domain, where dom0's word is not asked. */
  readonly domid?: number
}

/**
 * Connects to a service of another domain.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` if dom0 announces no such service to this domain, or nobody serves it;
 *   `ERR_CLOUDAPP_DENIED` if others than dom0 could have announced it; and as {@link connectVchan}.
 */
export async function connectVchanService(
  service: VchanService,
  options: { readonly timeout?: number; readonly signal?: AbortSignal } = {},
): Promise<Channel> {
  const neighbours = await Neighbours.acquire()
  try {
    const { domid, name } =
      service.domid === undefined
        ? await announced(neighbours.store, service.name)
        : { domid: service.domid, name: service.name }
    return await openShared({ domid, path: folder(domid, name, neighbours.local.domid), ...options }, name)
  } finally {
    await neighbours.release()
  }
}

/** What dom0 announces to this domain under a name. */
export async function announced(store: XenStore, name: string): Promise<{ domid: number; name: string }> {
  const path = `cloudapp/services/${checkName(name)}`
  const value = await readOwned(store, path)
  if (value === undefined) {
    throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `dom0 announces no service ${name} to this domain (${path})`)
  }
  const [, digits, theirs] = /^(\d{1,5})\/([a-z0-9-]{1,63})$/.exec(value) ?? []
  if (digits !== undefined && theirs !== undefined && NAME.test(theirs)) return { domid: Number(digits), name: theirs }
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `xenstore's ${path} is not DOMID/NAME`)
}

/** Whether dom0 announces a service of this name to this domain. */
export async function isAnnounced(name: string): Promise<boolean> {
  const neighbours = await Neighbours.acquire()
  try {
    await announced(neighbours.store, name)
    return true
  } catch (error) {
    if (CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) return false
    throw error
  } finally {
    await neighbours.release()
  }
}

/**
 * Serves a service to the domain that is named, or to each that dom0 introduced to this one, as they come and go.
 *
 * @param onError told when a domain can not be served, for instance because no grants are left; it is tried again.
 */
export async function listenVchanService(
  service: VchanService,
  onChannel: (channel: Channel) => void,
  onError: (error: CloudAppError) => void = () => {},
): Promise<ChannelListener> {
  const name = checkName(service.name)
  const neighbours = await Neighbours.acquire()
  const serve = (domid: number): Promise<ChannelListener> => {
    const path = folder(neighbours.local.domid, name, domid)
    return serveShared((onVchan) => serveVchan({ domid, path, onChannel: onVchan, onError }), onChannel)
  }
  if (service.domid === undefined) return new PeersListener(neighbours, name, serve, onError)
  try {
    return await serve(service.domid)
  } finally {
    await neighbours.release()
  }
}

class PeersListener implements ChannelListener {
  readonly address: string
  readonly #neighbours: Neighbours
  readonly #serve: (domid: number) => Promise<ChannelListener>
  readonly #onError: (error: CloudAppError) => void
  readonly #stop = new AbortController()
  readonly #served = new Map<number, ChannelListener>()
  readonly #running: Promise<void>
  #closing: Promise<void> | undefined

  constructor(
    neighbours: Neighbours,
    name: string,
    serve: (domid: number) => Promise<ChannelListener>,
    onError: (error: CloudAppError) => void,
  ) {
    this.address = `vchan:${name}`
    this.#neighbours = neighbours
    this.#serve = serve
    this.#onError = onError
    this.#running = this.#run()
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
    await Promise.all([...this.#served.values()].map((listener) => listener.close()))
    await this.#neighbours.release()
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop
    while (!signal.aborted) {
      const round = AbortSignal.any([signal, AbortSignal.timeout(AGAIN)])
      try {
        // The first event comes at once; the timeout begins anew, for what failed and for domains that have ended.
        for await (const _ of this.#neighbours.store.watch('cloudapp/peers', { signal: round })) await this.#follow()
      } catch (error) {
        this.#onError(error as CloudAppError)
        await new Promise((resolve) => {
          round.addEventListener('abort', resolve)
          if (round.aborted) resolve(undefined)
        })
      }
    }
  }

  async #follow(): Promise<void> {
    const { store, local } = this.#neighbours
    const listed = ((await store.list('cloudapp/peers')) ?? [])
      .filter((word) => /^\d{1,5}$/.test(word))
      .map(Number)
      .filter((domid) => domid !== local.domid)
      .filter(domainLives)
    if (listed.length > PEERS) {
      this.#onError(new CloudAppError('ERR_CLOUDAPP_LIMIT', `More than ${PEERS} domains are to be served`))
    }
    const wanted = new Set(listed.slice(0, PEERS))
    for (const [domid, listener] of this.#served) {
      if (wanted.has(domid)) continue
      this.#served.delete(domid)
      await listener.close()
    }
    for (const domid of wanted) {
      if (this.#served.has(domid) || this.#stop.signal.aborted) continue
      try {
        this.#served.set(domid, await this.#serve(domid))
      } catch (error) {
        if (!CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) this.#onError(error as CloudAppError)
      }
    }
  }
}

/** @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` */
export function checkName(name: string): string {
  if (typeof name === 'string' && NAME.test(name)) return name
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', "A service's name is a lower-case word with dashes")
}
