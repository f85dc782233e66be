import { setTimeout as sleep } from 'node:timers/promises'
import { CloudAppError } from '../../errors.js'
import { checked, loadShim } from '../../native/shim.js'
import { XenStore } from './xenstore.js'

/** How often it is looked whether peers live, in ms: a domain destroyed tells nobody. */
const LOOK = 300

/** dom0 is no VM and has no uuid of its own on most hosts. */
export const DOM0_UUID = '00000000-0000-0000-0000-000000000000'

export interface LocalDomain {
  readonly domid: number
  readonly uuid: string | undefined
}

type OnGone = (reason: CloudAppError) => void

interface Watched {
  readonly domid: number
  /** A key in the domain's folder. */
  readonly key?: string
  readonly onGone: OnGone
}

let shared: Neighbours | undefined
let users = 0

/**
 * What the vchans of this process know of this domain and of others: one connection to xenstore, and one look at who lives,
 * for all of them.
 */
export class Neighbours {
  readonly #watched = new Set<Watched>()
  readonly #ending = new AbortController()
  #store: XenStore
  #local: LocalDomain
  #looking: Promise<void> | undefined

  private constructor(store: XenStore, local: LocalDomain) {
    this.#store = store
    this.#local = local
  }

  /** To be released as often as it was acquired. */
  static async acquire(): Promise<Neighbours> {
    users++
    try {
      if (shared === undefined || shared.#store.closed.aborted) {
        const store = await XenStore.open()
        const made = new Neighbours(store, await localDomain(store))
        // Two may have opened at once: the first one counts.
        if (shared === undefined || shared.#store.closed.aborted) shared = made
        else await store.close()
      }
      return shared
    } catch (error) {
      users--
      throw error
    }
  }

  /** One more to release. */
  hold(): void {
    users++
  }

  async release(): Promise<void> {
    if (--users > 0) return
    const last = shared
    shared = undefined
    if (last === undefined) return
    last.#ending.abort()
    await last.#looking
    await last.#store.close()
  }

  get store(): XenStore {
    return this.#store
  }

  get local(): LocalDomain {
    return this.#local
  }

  /** What dom0 wrote of a domain: only keys that nobody else can write are believed. */
  async uuidOf(domid: number): Promise<string | undefined> {
    if (domid === 0) return DOM0_UUID
    if (this.#local.domid === 0) return uuidIn(await this.#store.read(`/local/domain/${domid}/vm`))
    return uuidIn(await readOwned(this.#store, `cloudapp/peers/${domid}`))
  }

  /**
   * Calls `onGone` once if the domain ends, or this one is another since it was restored. `key` is one that the toolstack
   * removes with the domain: of one whose page is mapped here, Xen keeps what is left. Returns how to stop it.
   */
  watch(domid: number, key: string | undefined, onGone: OnGone): () => void {
    const watched = { domid, onGone, ...(key === undefined ? {} : { key }) }
    this.#watched.add(watched)
    this.#looking ??= this.#look()
    return () => this.#watched.delete(watched)
  }

  async #look(): Promise<void> {
    const { signal } = this.#ending
    while (this.#watched.size > 0 && !signal.aborted) {
      await sleep(LOOK, undefined, { signal, ref: false }).catch(() => undefined)
      if (signal.aborted) break
      try {
        if (this.#store.closed.aborted) this.#store = await XenStore.open()
        await this.#lookOnce()
      } catch {
        // xenstored is being replaced: the vchans themselves do not need it, and the next look tries again.
      }
    }
    this.#looking = undefined
  }

  async #lookOnce(): Promise<void> {
    let restored = await this.#restored()
    for (const watched of [...this.#watched]) {
      const { domid, onGone } = watched
      if (!restored && (await this.#lives(watched))) continue
      // To a restored domain xenstore says of every other that it is not there; and it may have been between two questions.
      restored ||= await this.#restored()
      if (!this.#watched.delete(watched)) continue
      const why = restored
        ? `this domain was restored as domain ${this.#local.domid}: what it shared is gone`
        : `domain ${domid} has ended`
      onGone(new CloudAppError('ERR_CLOUDAPP_CLOSED', `The vchan ended: ${why}`))
    }
  }

  /** Whether this domain is another since it was last asked. */
  async #restored(): Promise<boolean> {
    const before = this.#local.domid
    this.#local = await localDomain(this.#store)
    return this.#local.domid !== before
  }

  async #lives({ domid, key }: Watched): Promise<boolean> {
    if (domid === this.#local.domid) return true
    if (!domainLives(domid)) return false
    if (key === undefined) return true
    try {
      return (await this.#store.read(key)) !== undefined
    } catch (error) {
      // So xenstored hides from a domain whether a key is missing where it may not look.
      if (CloudAppError.is(error, 'ERR_CLOUDAPP_DENIED')) return false
      throw error
    }
  }
}

/**
 * Whether Xen has a domain of this number; any domain may ask, as only dom0 may ask xenstore.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` where there is no /dev/xen/evtchn.
 */
export function domainLives(domid: number): boolean {
  const shim = loadShim()
  return checked(shim, shim.ca_domain_lives(domid)) === 1
}

async function localDomain(store: XenStore): Promise<LocalDomain> {
  const domid = Number(await store.read('domid'))
  if (!Number.isInteger(domid)) {
    throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', 'xenstore does not say which domain this is (no key domid)')
  }
  return { domid, uuid: domid === 0 ? DOM0_UUID : uuidIn(await store.read('vm')) }
}

/** `/vm/UUID`, or a uuid. */
function uuidIn(text: string | undefined): string | undefined {
  const uuid = text?.replace(/^\/vm\//, '').toLowerCase()
  return uuid !== undefined && /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(uuid) ? uuid : undefined
}

/**
 * A key that only dom0 can have written; undefined if there is none.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_DENIED` if another domain could write it.
 */
export async function readOwned(store: XenStore, path: string): Promise<string | undefined> {
  return store.transaction(async (keys) => {
    const value = await keys.read(path)
    if (value === undefined) return undefined
    const [owner, ...others] = await keys.permissions(path)
    const dom0Only =
      owner?.domid === 0 &&
      [owner, ...others].every(({ domid, access }) => domid === 0 || access === 'none' || access === 'read') &&
      (owner.access === 'none' || owner.access === 'read')
    if (dom0Only) return value
    throw new CloudAppError('ERR_CLOUDAPP_DENIED', `xenstore's ${path} can be written by others than dom0`, {
      details: { path },
    })
  })
}
