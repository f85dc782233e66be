import { type RpcCompatible, RpcSession, type RpcStub } from 'capnweb'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import type { Channel, PeerIdentity } from './channel.js'
import { type Deferred, deferred } from './deferred.js'
import { encodeFrameParts, FRAME_LIMITS, type FrameLimits, FrameReader } from './frames.js'
import { GUARD_LIMITS, Guard, type GuardLimits } from './guard.js'
import { errorForPeer, errorFromPeer } from './wire-error.js'

/** What this side takes from its peer. Only the receiver sets it. */
export interface SessionLimits extends FrameLimits, GuardLimits {
  /** Calls whose answer the peer waits for; while there are so many, it is not read. 64 by default. */
  readonly running: number
  /** Bytes of their messages together. 64 MiB by default. */
  readonly runningBytes: number
}

export const SESSION_LIMITS: SessionLimits = {
  ...FRAME_LIMITS,
  ...GUARD_LIMITS,
  running: 64,
  runningBytes: 64 * 1024 * 1024,
}

export interface SessionOptions {
  /** What the peer finds at this side: an instance of a class that extends capnweb's RpcTarget. */
  readonly main?: object
  readonly limits?: Partial<SessionLimits>
  /** Whether the peer may pass functions and objects of its own in arguments. False by default. */
  readonly allowStubs?: boolean
  /** Whether the peer may open byte streams. False by default. */
  readonly allowStreams?: boolean
  /**
   * Waits until a message of the peer may be handled; asked before each, returns nothing if it may be at once. Without, the
   * event loop turns after each millisecond of one peer's messages.
   */
  readonly turn?: () => Promise<void> | undefined
}

/** A capnweb session over one channel. Closing it closes the channel. */
export interface Session<T> extends AsyncDisposable {
  /** What the peer offers. Dispose nothing of it but what calls return; close the session instead. */
  readonly remote: T
  readonly peer: PeerIdentity
  readonly channel: Channel
  /** Fires when the session ends; `reason` is a CloudAppError that says why. */
  readonly closed: AbortSignal
  /** Changes what is taken from the peer from the next message on. */
  setLimits(limits: Partial<SessionLimits>): void
  /**
   * Waits for an answer of the peer and makes its errors {@link CloudAppError}s again. If `signal` fires first, `cancel`
   * is called (to tell the peer) and the wait ends with ERR_CLOUDAPP_ABORTED.
   */
  settle<R>(answer: PromiseLike<R>, options?: { readonly signal?: AbortSignal; cancel?(): void }): Promise<R>
  /**
   * Resolves when an answer of `bytes` (at least {@link LARGE_FRAME}), given in this turn of the event loop, is not kept
   * here any more: sent, and let go of by the peer; or when the session has ended.
   */
  taken(bytes: number): Promise<void>
  /** Live table entries, for tests and metrics. */
  stats(): { readonly imports: number; readonly exports: number; readonly running: number }
  /** Idempotent. */
  close(): Promise<void>
}

/** How long messages of one peer are handled before others get their turn, in ms. */
const SLICE = 1

/** Bytes of answers queued for a peer that does not read before it is not read either. */
const OUT_HIGH_WATER = 1024 * 1024

/** Frames of at least so many bytes are reckoned with by {@link Session.taken}. */
export const LARGE_FRAME = 64 * 1024

class FrameTransport {
  readonly encodingLevel = 'jsonCompatibleWithBytes'
  readonly #channel: Channel
  readonly #frames: FrameReader
  readonly guard: Guard
  limits: SessionLimits
  onEnd: (reason: unknown) => void = () => {}
  #room: Deferred<void> | undefined
  /** Large answers that were given and are kept: not asked for, or sent and not let go of. How much of each. */
  readonly #owed: { bytes: number; readonly sent: Deferred<void> }[] = []
  /** Bytes of large answers that were sent, by the call that the peer has not let go of. */
  readonly #kept = new Map<number, number>()
  readonly #turn: () => Promise<void> | undefined

  constructor(channel: Channel, limits: SessionLimits, guard: Guard, turn = ownTurn()) {
    this.#channel = channel
    this.#turn = turn
    this.limits = limits
    this.guard = guard
    guard.onChange = (released) => this.#forget(released)
    channel.closed.addEventListener('abort', () => this.#nothingOwed(), { once: true })
    this.#frames = new FrameReader(limits)
  }

  setLimits(limits: SessionLimits): void {
    this.limits = limits
    this.#frames.limits = limits
  }

  send(message: unknown): number {
    this.guard.outgoing(message as unknown[])
    if (this.#room !== undefined && !this.#full()) {
      this.#room.resolve()
      this.#room = undefined
    }
    const { parts, size } = encodeFrameParts(message)
    for (const part of parts) this.#channel.write(part)
    // capnweb keeps an answer until the peer lets go of its call.
    if (size >= LARGE_FRAME) this.#kept.set((message as [string, number])[1], size)
    return size
  }

  async receive(): Promise<unknown> {
    for (;;) {
      // Making sense of bytes is work as well. What is to be seen after it is seen as it is when the turn has come.
      if (this.#frames.partial) await this.#turn()
      if (this.#channel.queued > OUT_HIGH_WATER) await this.#channel.drained()
      // While this side waits for answers it must read on, or two peers that call each other would stop for good.
      while (this.#full()) {
        this.#room ??= deferred()
        await this.#room.promise
      }
      const frame = this.#frames.next()
      if (frame !== undefined) {
        this.guard.incoming(frame.value, frame.size)
        return frame.value
      }
      const chunk = await this.#channel.read()
      if (chunk === undefined) {
        throw this.#frames.partial
          ? new CloudAppError('ERR_CLOUDAPP_PROTOCOL', 'The peer broke the wire protocol: it ended inside a frame')
          : new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The peer closed the connection')
      }
      this.#frames.push(chunk)
    }
  }

  /** {@link Session.taken}. */
  async taken(bytes: number): Promise<void> {
    if (this.#channel.closed.aborted) return
    const sent = deferred<void>()
    this.#owed.push({ bytes, sent })
    // Asked for already, it is sent by then; or its call was let go of.
    setImmediate(() => this.#forget(undefined))
    await sent.promise
    // Once: a channel may see room where this does not, and asking it again and again would be all this process does.
    if (!this.#channel.closed.aborted && this.#channel.queued > OUT_HIGH_WATER) await this.#channel.drained()
  }

  abort(reason: unknown): void {
    this.#room?.resolve()
    this.#room = undefined
    this.onEnd(reason)
  }

  /** Answers are let go of in another order than they were given: what counts is how much is kept. */
  #forget(released: number | undefined): void {
    let left = released === undefined ? 0 : (this.#kept.get(released) ?? 0)
    if (released !== undefined) this.#kept.delete(released)
    for (let first = this.#owed[0]; left > 0 && first !== undefined; first = this.#owed[0]) {
      const part = Math.min(left, first.bytes)
      left -= part
      first.bytes -= part
      if (first.bytes === 0) this.#owed.shift()?.sent.resolve()
    }
    if (this.guard.unasked === 0 && this.#kept.size === 0) this.#nothingOwed()
  }

  #nothingOwed(): void {
    for (const { sent } of this.#owed.splice(0)) sent.resolve()
  }

  #full(): boolean {
    if (this.#channel.closed.aborted || this.guard.awaited > 0) return false
    return this.guard.running >= this.limits.running || this.guard.runningBytes > this.limits.runningBytes
  }
}

/** Lets the event loop turn when a peer has had its slice, so that a flood of messages starves nobody. */
function ownTurn(): () => Promise<void> | undefined {
  /** Resolves when the event loop has turned since the slice began. */
  let turned: Promise<void> | undefined
  let end = 0
  const begin = (): undefined => {
    end = performance.now() + SLICE
    turned = new Promise((resolve) => {
      setImmediate(() => {
        turned = undefined
        resolve()
      })
    })
  }
  return () => {
    if (turned === undefined) return begin()
    return performance.now() < end ? undefined : turned.then(begin)
  }
}

/**
 * Opens an RPC session over a channel, which then belongs to the session. Both ends may offer a main object.
 *
 * The messages of the peer are checked before capnweb sees them: canonical CBOR frames within limits, no `remap`, no
 * calls hidden in arguments, no stubs or streams unless allowed. A peer that breaks this loses the session with
 * ERR_CLOUDAPP_PROTOCOL; one that asks faster than it is served, or does not read, is held back.
 */
export function openSession<T extends RpcCompatible<T>>(
  channel: Channel,
  options: SessionOptions = {},
): Session<RpcStub<T>> {
  checkOptions('openSession', options, ['main', 'limits', 'allowStubs', 'allowStreams', 'turn'])
  checkOptions('openSession limits', options.limits, Object.keys(SESSION_LIMITS))
  const limits = { ...SESSION_LIMITS, ...options.limits }
  const guard = new Guard(limits, options.allowStubs ?? false, options.allowStreams ?? false)
  return new OpenSession<T>(channel, new FrameTransport(channel, limits, guard, options.turn), options.main)
}

class OpenSession<T extends RpcCompatible<T>> implements Session<RpcStub<T>> {
  readonly #transport: FrameTransport
  readonly #rpc: RpcSession<T>
  readonly #closed = new AbortController()
  readonly remote: RpcStub<T>
  #closing: Promise<void> | undefined

  constructor(
    readonly channel: Channel,
    transport: FrameTransport,
    main: object | undefined,
  ) {
    this.#transport = transport
    transport.onEnd = (reason) => this.#end(errorFromPeer(reason))
    this.#rpc = new RpcSession<T>(transport, main, { onSendError: errorForPeer, limits: { maxBigIntDigits: 80 } })
    this.remote = this.#rpc.getRemoteMain()
  }

  get peer(): PeerIdentity {
    return this.channel.peer
  }

  get closed(): AbortSignal {
    return this.#closed.signal
  }

  setLimits(limits: Partial<SessionLimits>): void {
    checkOptions('Session.setLimits', limits, Object.keys(SESSION_LIMITS))
    const merged = { ...this.#transport.limits, ...limits }
    this.#transport.guard.limits = merged
    this.#transport.setLimits(merged)
  }

  async settle<R>(
    answer: PromiseLike<R>,
    options: { readonly signal?: AbortSignal; cancel?(): void } = {},
  ): Promise<R> {
    const { signal } = options
    let onAbort: (() => void) | undefined
    try {
      if (signal === undefined) return await answer
      const aborted = deferred<never>()
      onAbort = () => {
        options.cancel?.()
        aborted.reject(new CloudAppError('ERR_CLOUDAPP_ABORTED', 'The call was aborted', { cause: signal.reason }))
      }
      if (signal.aborted) onAbort()
      else signal.addEventListener('abort', onAbort)
      return await Promise.race([answer, aborted.promise])
    } catch (error) {
      throw errorFromPeer(error, this.#closed.signal.reason as CloudAppError | undefined)
    } finally {
      if (onAbort) signal?.removeEventListener('abort', onAbort)
    }
  }

  taken(bytes: number): Promise<void> {
    return this.#transport.taken(bytes)
  }

  stats(): { readonly imports: number; readonly exports: number; readonly running: number } {
    return { ...this.#rpc.getStats(), running: this.#transport.guard.running }
  }

  close(): Promise<void> {
    if (this.#closing === undefined) {
      this.#end(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The session is closed'))
      ;(this.remote as Disposable)[Symbol.dispose]()
    }
    return this.#closing as unknown as Promise<void>
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #end(reason: CloudAppError): void {
    if (this.#closing !== undefined) return
    // The channel sends what is queued first: the last message tells the peer why.
    this.#closing = this.channel.close()
    this.#closed.abort(reason)
  }
}
