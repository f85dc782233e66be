import { CloudAppError } from '../../errors.js'
import type { Shim } from '../../native/abi.js'
import { checked, loadShim } from '../../native/shim.js'
import { checkOptions } from '../../options.js'
import { pollDevice, type StopPolling } from './poll.js'

/** CA_EVTCHN_UNBOUND, cloudapp_vchan.h. */
const UNBOUND = 0xffff_ffff

/**
 * One event channel: a signal between this domain and another, without data. Events that come faster than they are waited
 * for are one event. The event loop is not blocked: /dev/xen/evtchn is polled by it.
 */
export class EventChannel implements AsyncDisposable {
  readonly #shim: Shim
  readonly #fd: number
  readonly #stop: StopPolling
  readonly #closed = new AbortController()
  #pending = false
  #waiting: { resolve(): void; reject(error: unknown): void }[] = []

  private constructor(
    shim: Shim,
    fd: number,
    /** This end's port: what the peer binds, if it was allocated here. */
    readonly port: number,
    readonly domid: number,
  ) {
    this.#shim = shim
    this.#fd = fd
    this.#stop = pollDevice(
      shim,
      fd,
      new Uint8Array(64),
      () => this.#event(),
      (cause) => this.#end(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The event channel can not be polled', { cause })),
    )
  }

  /**
   * A fresh port that only domain `domid` may bind.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` where there is no /dev/xen/evtchn.
   */
  static allocate(domid: number): EventChannel {
    return EventChannel.#open(domid, UNBOUND)
  }

  /**
   * Binds a port that domain `domid` allocated for this one. The first event may be nobody's: Xen makes one when a port is
   * bound, in place of those that nobody was there to see (evtchn_bind_interdomain(), xen/common/event_channel.c).
   *
   * @throws CloudAppError `ERR_CLOUDAPP_SOURCE`
   */
  static bind(domid: number, remotePort: number): EventChannel {
    return EventChannel.#open(domid, remotePort)
  }

  static #open(domid: number, remote: number): EventChannel {
    const shim = loadShim()
    const port = new Uint32Array(1)
    const fd = checked(shim, shim.ca_evtchn_open(domid, remote, new Uint8Array(port.buffer)))
    return new EventChannel(shim, fd, port[0] as number, domid)
  }

  get closed(): AbortSignal {
    return this.#closed.signal
  }

  /** Signals the peer. Nobody is told if it has gone. */
  notify(): void {
    this.#assertOpen()
    checked(this.#shim, this.#shim.ca_evtchn_notify(this.#fd, this.port))
  }

  /** Resolves at the next event, or at once if one came since the last wait. */
  async wait(options: { readonly signal?: AbortSignal } = {}): Promise<void> {
    checkOptions('EventChannel.wait', options, ['signal'])
    this.#assertOpen()
    const { signal } = options
    if (signal?.aborted) throw aborted(signal)
    if (this.#pending) {
      this.#pending = false
      return
    }
    let onAbort: (() => void) | undefined
    try {
      await new Promise<void>((resolve, reject) => {
        const entry = { resolve, reject }
        this.#waiting.push(entry)
        onAbort = () => {
          this.#waiting = this.#waiting.filter((other) => other !== entry)
          reject(aborted(signal))
        }
        signal?.addEventListener('abort', onAbort)
      })
    } finally {
      if (onAbort) signal?.removeEventListener('abort', onAbort)
    }
  }

  /** Idempotent. */
  async close(): Promise<void> {
    this.#end(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The event channel is closed'))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #event(): void {
    // First, so that an event from here on is a new one.
    checked(this.#shim, this.#shim.ca_evtchn_unmask(this.#fd, this.port))
    const waiting = this.#waiting
    this.#waiting = []
    this.#pending = waiting.length === 0
    for (const { resolve } of waiting) resolve()
  }

  #end(reason: CloudAppError): void {
    if (this.closed.aborted) return
    this.#stop()
    this.#closed.abort(reason)
    const waiting = this.#waiting
    this.#waiting = []
    for (const { reject } of waiting) reject(reason)
    checked(this.#shim, this.#shim.ca_evtchn_close(this.#fd))
  }

  #assertOpen(): void {
    if (this.closed.aborted) throw this.closed.reason
  }
}

function aborted(signal: AbortSignal | undefined): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_ABORTED', 'Waiting for an event was aborted', { cause: signal?.reason })
}
