import { setTimeout as sleep } from 'node:timers/promises'
import { CloudAppError } from '../../errors.js'
import { XenStore } from './xenstore.js'

/** How often it is looked whether peers live, in ms: a domain destroyed tells nobody. */
const LOOK = 300

/** dom0 is no VM and has no uuid of its own on most hosts. */
const DOM0_UUID = '00000000-0000-0000-0000-000000000000'

export interface LocalDomain {
  readonly domid: number
  readonly uuid: string | undefined
}

type OnGone = (reason: CloudAppError) => void

let shared: Neighbours | undefined
let users = 0

/**
 * What the vchans of this process know of this domain and of others: one connection to xenstore, and one look at who lives,
 * for all of them.
 */
export class Neighbours {
  readonly #watched = new Map<number, Set<OnGone>>()
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

  /** Calls `onGone` once if the domain ends, or this one is another since it was restored. Returns how to stop it. */
  watch(domid: number, onGone: OnGone): () => void {
    const set = this.#watched.get(domid) ?? new Set()
    this.#watched.set(domid, set.add(onGone))
    this.#looking ??= this.#look()
    return () => {
      set.delete(onGone)
      if (set.size === 0 && this.#watched.get(domid) === set) this.#watched.delete(domid)
    }
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
    const local = await localDomain(this.#store)
    const restored = local.domid !== this.#local.domid
    this.#local = local
    for (const [domid, set] of [...this.#watched]) {
      if (!restored && (domid === local.domid || (await this.#store.isDomainIntroduced(domid)))) continue
      this.#watched.delete(domid)
      const why = restored
        ? `this domain was restored as domain ${local.domid}: what it shared is gone`
        : `domain ${domid} has ended`
      for (const onGone of set) onGone(new CloudAppError('ERR_CLOUDAPP_CLOSED', `The vchan ended: ${why}`))
    }
  }
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
