import { setTimeout as sleep } from 'node:timers/promises'
import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import { StoreConnection } from './xenstore-connection.js'
import { type StoreEvent, StoreWatch } from './xenstore-watch.js'
import { checkPath, splitStrings, strings, XS } from './xenstore-wire.js'

/** Names and bytes of one directory that are taken, in parts. */
const LIST_BYTES = 1024 * 1024
const WATCHES = 128

const LETTERS = { none: 'n', read: 'r', write: 'w', both: 'b' } as const

/** Who may use a key. The first of a list is the owner, with what everybody not listed may do. */
export interface StorePermission {
  readonly domid: number
  readonly access: keyof typeof LETTERS
}

export interface XenStoreOptions {
  /** A socket of xenstored, or a device of the kernel. What this domain has, by default. */
  readonly path?: string
}

/** Keys of xenstore, as they are, or as one transaction sees them. A path without a leading slash is below this domain's own. */
export class StoreKeys {
  /** @internal */
  protected constructor(
    /** @internal */
    protected readonly connection: StoreConnection,
    private readonly transactionId: number,
  ) {}

  /** The value as text, or undefined if there is no such key. @throws CloudAppError `ERR_CLOUDAPP_DENIED` */
  async read(path: string): Promise<string | undefined> {
    const bytes = await this.readBytes(path)
    return bytes === undefined ? undefined : Buffer.from(bytes).toString('utf8')
  }

  /** The value, or undefined if there is no such key. @throws CloudAppError `ERR_CLOUDAPP_DENIED` */
  async readBytes(path: string): Promise<Uint8Array | undefined> {
    try {
      return await this.ask(XS.READ, strings(checkPath(path)), `read ${path}`)
    } catch (error) {
      if (CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) return undefined
      throw error
    }
  }

  /** Writes a key, and makes the folders above it. At most 4,096 bytes with its path. */
  async write(path: string, value: string | Uint8Array): Promise<void> {
    const bytes = typeof value === 'string' ? Buffer.from(value) : value
    await this.ask(XS.WRITE, Buffer.concat([strings(checkPath(path)), bytes]), `write ${path}`)
  }

  /** Makes a key with no value, if there is none. */
  async mkdir(path: string): Promise<void> {
    await this.ask(XS.MKDIR, strings(checkPath(path)), `mkdir ${path}`)
  }

  /** Removes a key and all below it, if it is there: whether it was, xenstored tells only where its folder is missing, too. */
  async remove(path: string): Promise<void> {
    try {
      await this.ask(XS.RM, strings(checkPath(path)), `remove ${path}`)
    } catch (error) {
      if (!CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) throw error
    }
  }

  /** The names below a key; undefined if there is no such key. Up to 1 MiB of names, else ERR_CLOUDAPP_LIMIT. */
  async list(path: string): Promise<string[] | undefined> {
    try {
      return splitStrings(await this.ask(XS.DIRECTORY, strings(checkPath(path)), `list ${path}`))
    } catch (error) {
      if (CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) return undefined
      if (!CloudAppError.is(error) || error.details?.errno !== 'E2BIG') throw error
      return this.#listParts(path)
    }
  }

  async permissions(path: string): Promise<StorePermission[]> {
    const body = await this.ask(XS.GET_PERMS, strings(checkPath(path)), `permissions of ${path}`)
    return splitStrings(body).map((text) => {
      const access = (Object.keys(LETTERS) as (keyof typeof LETTERS)[]).find((key) => LETTERS[key] === text[0])
      const domid = Number(text.slice(1))
      if (access === undefined || !Number.isInteger(domid)) {
        throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', 'xenstore sent a malformed permission')
      }
      return { domid, access }
    })
  }

  async setPermissions(path: string, permissions: readonly StorePermission[]): Promise<void> {
    if (permissions.length === 0 || permissions.length > 64) {
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'setPermissions: one owner, and at most 63 others')
    }
    const words = permissions.map(({ domid, access }) => `${LETTERS[access]}${checkDomid(domid)}`)
    await this.ask(XS.SET_PERMS, strings(checkPath(path), ...words), `set permissions of ${path}`)
  }

  /** @internal */
  protected ask(type: number, body: Uint8Array, what: string): Promise<Uint8Array> {
    return this.connection.request(type, body, this.transactionId, what)
  }

  // XS_DIRECTORY_PART: a generation, then names; an empty name ends the last part. A change in between starts anew.
  async #listParts(path: string): Promise<string[]> {
    for (let attempt = 0; attempt < 8; attempt++) {
      const parts: Uint8Array[] = []
      let bytes = 0
      let generation: string | undefined
      for (;;) {
        const part = await this.ask(XS.DIRECTORY_PART, strings(path, `${bytes}`), `list ${path}`)
        const end = part.indexOf(0)
        const now = Buffer.from(part.subarray(0, Math.max(end, 0))).toString('latin1')
        if (end < 0 || (generation !== undefined && generation !== now)) break
        generation = now
        const names = part.subarray(end + 1)
        const last = names.length === 0 || (names.at(-1) === 0 && (names.length === 1 || names.at(-2) === 0))
        parts.push(last ? names.subarray(0, -1) : names)
        bytes += names.length
        if (last) return splitStrings(Buffer.concat(parts))
        if (bytes > LIST_BYTES) {
          throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `xenstore: ${path} has more than ${LIST_BYTES} bytes of names`)
        }
      }
    }
    throw new CloudAppError('ERR_CLOUDAPP_SOURCE', `xenstore: ${path} changes too fast to be listed`)
  }
}

/** A transaction that is open. Valid within {@link XenStore.transaction}'s work only. */
export class StoreTransaction extends StoreKeys {
  /** @internal */
  constructor(
    connection: StoreConnection,
    readonly id: number,
  ) {
    super(connection, id)
  }
}

/**
 * Xenstore, the registry of a Xen host: what dom0 says of each domain, and what domains say to each other. In dom0 over the
 * socket of xenstored, elsewhere over /dev/xen/xenbus. Speaks the protocol of xen/io/xs_wire.h; the answers are bounded.
 */
export class XenStore extends StoreKeys implements AsyncDisposable {
  readonly #watches = new Map<string, StoreWatch>()
  #serial = 0

  private constructor(connection: StoreConnection) {
    super(connection, 0)
    connection.closed.addEventListener('abort', () => {
      for (const watch of this.#watches.values()) watch.end(connection.closed.reason)
      this.#watches.clear()
    })
  }

  /**
   * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` where there is no xenstore; `ERR_CLOUDAPP_DENIED` if this user may not
   *   open it (it belongs to root).
   */
  static async open(options: XenStoreOptions = {}): Promise<XenStore> {
    checkOptions('XenStore.open', options, ['path'])
    return new XenStore(await StoreConnection.open(options.path))
  }

  /** Fires when the connection has ended; `reason` is a CloudAppError. */
  get closed(): AbortSignal {
    return this.connection.closed
  }

  /**
   * Whether xenstore knows a domain of this number that lives; for dom0.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_DENIED` in other domains.
   */
  async isDomainIntroduced(domid: number): Promise<boolean> {
    const answer = await this.ask(XS.IS_DOMAIN_INTRODUCED, strings(`${checkDomid(domid)}`), `is there domain ${domid}`)
    return answer[0] === 0x54
  }

  /**
   * Runs `work` in a transaction: all of it happens, or, if it throws, nothing. If somebody else changed what it read, it is
   * run again, up to `attempts` times (16 by default).
   *
   * @throws CloudAppError `ERR_CLOUDAPP_LIMIT` when every attempt met a change.
   */
  async transaction<T>(
    work: (transaction: StoreTransaction) => Promise<T>,
    options: { readonly attempts?: number } = {},
  ): Promise<T> {
    checkOptions('XenStore.transaction', options, ['attempts'])
    const attempts = options.attempts ?? 16
    for (let attempt = 0; attempt < attempts; attempt++) {
      const id = Number(splitStrings(await this.ask(XS.TRANSACTION_START, strings(''), 'begin a transaction'))[0])
      if (!Number.isSafeInteger(id) || id <= 0 || id > 0xffff_ffff) {
        throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', 'xenstore gave a malformed transaction')
      }
      let result: T
      try {
        result = await work(new StoreTransaction(this.connection, id))
      } catch (error) {
        await this.#endTransaction(id, false).catch(() => undefined)
        throw error
      }
      try {
        await this.#endTransaction(id, true)
        return result
      } catch (error) {
        if (!CloudAppError.is(error) || error.details?.errno !== 'EAGAIN') throw error
      }
      await sleep(Math.random() * 2 ** Math.min(attempt, 6))
    }
    throw new CloudAppError(
      'ERR_CLOUDAPP_LIMIT',
      `xenstore: a transaction met a change in each of ${attempts} attempts`,
      {
        details: { attempts },
      },
    )
  }

  /**
   * Changes at and below a path, whether it exists or not; the first event comes at once. Also `@releaseDomain` and
   * `@introduceDomain`, where this domain may. Ends with `signal`, or when the iteration is left; throws when xenstore ends.
   */
  async *watch(path: string, options: { readonly signal?: AbortSignal } = {}): AsyncIterableIterator<StoreEvent> {
    checkOptions('XenStore.watch', options, ['signal'])
    checkPath(path, true)
    if (this.closed.aborted) throw this.closed.reason
    if (this.#watches.size >= WATCHES) {
      throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `xenstore: more than ${WATCHES} watches`)
    }
    const { signal } = options
    const token = `ca${++this.#serial}`
    const watch = new StoreWatch(path, () => {})
    const stop = () => watch.end()
    this.#watches.set(token, watch)
    this.connection.route(token, (changed) => watch.push(changed))
    signal?.addEventListener('abort', stop)
    let set = false
    try {
      if (signal?.aborted) return
      await this.ask(XS.WATCH, strings(path, token), `watch ${path}`)
      set = true
      yield* watch
    } finally {
      signal?.removeEventListener('abort', stop)
      this.#watches.delete(token)
      this.connection.route(token, undefined)
      if (set && !this.closed.aborted) {
        await this.ask(XS.UNWATCH, strings(path, token), `unwatch ${path}`).catch(() => undefined)
      }
    }
  }

  /** Ends the connection, its watches and transactions. Idempotent. */
  async close(): Promise<void> {
    this.connection.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #endTransaction(id: number, commit: boolean): Promise<void> {
    await this.connection.request(XS.TRANSACTION_END, strings(commit ? 'T' : 'F'), id, 'end a transaction')
  }
}

function checkDomid(domid: number): number {
  // DOMID_FIRST_RESERVED of xen/xen.h.
  if (Number.isInteger(domid) && domid >= 0 && domid < 0x7ff0) return domid
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${String(domid)} is no number of a domain`)
}
