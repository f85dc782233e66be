import { CloudAppError } from '../../errors.js'
import type { Shim } from '../../native/abi.js'
import { checked, loadShim } from '../../native/shim.js'
import { checkOptions } from '../../options.js'
import type { EventChannel } from './event-channel.js'

/** CA_GRANTS_WRITE and CA_GRANTS_MAX, cloudapp_vchan.h. */
const WRITE = 1
const MOST = 1024

/** CA_EVTCHN_UNBOUND. */
const NOBODY = 0xffff_ffff

/** Bytes of a page. */
export const GRANT_PAGE = 4096

/**
 * Pages shared between two domains by grants. The bytes are copied in and out: no view of them leaves this object, since the
 * other domain may change them at any moment.
 */
export class GrantedPages implements AsyncDisposable {
  readonly #shim: Shim
  readonly #handle: number
  readonly #closed = new AbortController()

  /** @internal */
  constructor(
    shim: Shim,
    handle: number,
    readonly domid: number,
    /** The grant reference of each page. */
    readonly refs: readonly number[],
  ) {
    this.#shim = shim
    this.#handle = handle
  }

  get closed(): AbortSignal {
    return this.#closed.signal
  }

  /** All of them together, in bytes. */
  get length(): number {
    return this.refs.length * GRANT_PAGE
  }

  /** Copies bytes out. @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` outside the pages. */
  read(at: number, length: number): Uint8Array {
    this.#check(at, length)
    const bytes = new Uint8Array(length)
    checked(this.#shim, this.#shim.ca_grants_read(this.#handle, BigInt(at), bytes, length))
    return bytes
  }

  /** Copies bytes in. @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` if they were mapped for reading only. */
  write(at: number, bytes: Uint8Array): void {
    this.#check(at, bytes.length)
    checked(this.#shim, this.#shim.ca_grants_write(this.#handle, BigInt(at), bytes, bytes.length))
  }

  /**
   * What the kernel does when the pages are unmapped here, also because this process died: the byte at `at` becomes 0, and
   * the peer of `events` is notified.
   */
  notifyOnUnmap(at: number, events?: EventChannel): void {
    this.#check(at, 1)
    checked(this.#shim, this.#shim.ca_grants_notify(this.#handle, BigInt(at), events?.port ?? NOBODY))
  }

  /** Unmaps, and takes back what was shared: a page the peer still maps is its until it lets go. Idempotent. */
  async close(): Promise<void> {
    if (this.closed.aborted) return
    this.#closed.abort(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The pages are closed'))
    checked(this.#shim, this.#shim.ca_grants_close(this.#handle))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #check(at: number, length: number): void {
    if (this.closed.aborted) throw this.closed.reason
    if (Number.isSafeInteger(at) && at >= 0 && length >= 0 && length <= this.length - at) return
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${length} bytes at ${at} are not within ${this.length}`)
  }
}

/** Shares memory of this domain with others, and maps what others share. */
export const GrantTable = {
  /**
   * Shares fresh pages, all zero, with one domain; writable by it unless `writable` is false.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_LIMIT` when this domain has no grants left (gntalloc allows 1,024 for all its
   *   processes by default); `ERR_CLOUDAPP_UNSUPPORTED` where there is no /dev/xen/gntalloc.
   */
  share(options: { readonly domid: number; readonly pages: number; readonly writable?: boolean }): GrantedPages {
    checkOptions('GrantTable.share', options, ['domid', 'pages', 'writable'])
    const { domid, pages, writable = true } = options
    checkCount(pages)
    const shim = loadShim()
    const refs = new Uint32Array(pages)
    const handle = shim.ca_grants_share(domid, writable ? WRITE : 0, pages, new Uint8Array(refs.buffer))
    return new GrantedPages(shim, checked(shim, handle), domid, [...refs])
  },

  /**
   * Maps pages a domain shares with this one, one after the other.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_SOURCE` if that domain shares no such pages with this one.
   */
  map(options: {
    readonly domid: number
    readonly refs: readonly number[]
    readonly writable?: boolean
  }): GrantedPages {
    checkOptions('GrantTable.map', options, ['domid', 'refs', 'writable'])
    const { domid, refs, writable = true } = options
    checkCount(refs.length)
    const shim = loadShim()
    const words = new Uint8Array(Uint32Array.from(refs).buffer)
    const handle = shim.ca_grants_map(domid, writable ? WRITE : 0, refs.length, words)
    return new GrantedPages(shim, checked(shim, handle), domid, [...refs])
  },
} as const

function checkCount(pages: number): void {
  if (Number.isInteger(pages) && pages > 0 && pages <= MOST) return
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `Between 1 and ${MOST} pages are shared at a time`)
}
