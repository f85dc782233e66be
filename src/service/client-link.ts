import { setTimeout as sleep } from 'node:timers/promises'
import { type KeyPair, parsePublicKey } from '../capabilities/keys.js'
import { makePass } from '../capabilities/pass.js'
import { CloudAppError, type CloudAppErrorCode } from '../errors.js'
import type { Channel } from '../transport/channel.js'
import { deferred } from '../transport/deferred.js'
import { openSession, type Session } from '../transport/session.js'
import {
  ANSWERS,
  answer,
  INTERFACE_VERSION,
  OLDEST_VERSION,
  type WireRoot,
  type WireService,
} from './interface/protocol.js'

export type Connect = (signal?: AbortSignal) => Promise<Channel>

/** What a service domain may send: pages of findings. */
const LIMITS = { frameBytes: 8 * 1024 * 1024, depth: 16, items: 65_536 }

const FIRST_WAIT = 50
const LONGEST_WAIT = 2000

/** Errors that mean the other side is away and may come back. */
const AWAY: readonly CloudAppErrorCode[] = ['ERR_CLOUDAPP_CLOSED', 'ERR_CLOUDAPP_TIMEOUT', 'ERR_CLOUDAPP_NOT_FOUND']

/** Who a client says it is. */
export interface Hello {
  /** Free text for logs. */
  readonly name?: string
  /** A customer's key: a pass is made with it for each connection. */
  readonly key?: KeyPair
  /** A pass that was handed over. */
  readonly pass?: string
}

/** How long a pass for one connection may take to get there, in ms; the clocks of two machines differ. */
const PASS_LIFE = 60_000

/** A session and what the service domain offers in it. */
export interface Open {
  readonly session: Session<Disposable & WireRoot>
  readonly service: WireService & Disposable
}

/** One attempt to open a session, for all who wait for it, and then the session. */
interface Opening {
  readonly opened: Promise<Open>
  /** Ends the attempt. */
  readonly stop: AbortController
  waiting: number
  settled: boolean
}

/** One client's connection to a service domain, made again when it is gone. */
export class ClientLink {
  readonly reconnectMs: number
  readonly #connect: Connect
  readonly #hello: Hello
  readonly #closed = new AbortController()
  #open: Opening | undefined

  constructor(connect: Connect, hello: Hello, reconnectMs: number) {
    this.#connect = connect
    this.#hello = hello
    this.reconnectMs = reconnectMs
  }

  get closed(): AbortSignal {
    return this.#closed.signal
  }

  /**
   * The open session, or a new one. Who waits for it waits as long as their own signal lets them, whoever asked first.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_ABORTED`, and what connecting throws
   */
  async open(signal?: AbortSignal): Promise<Open> {
    if (this.closed.aborted) throw this.closed.reason
    this.#open ??= this.#start()
    const opening = this.#open
    const aborted = deferred<never>()
    const onAbort = () => {
      aborted.reject(new CloudAppError('ERR_CLOUDAPP_ABORTED', 'Connecting was aborted', { cause: signal?.reason }))
    }
    if (signal?.aborted) onAbort()
    else signal?.addEventListener('abort', onAbort)
    opening.waiting++
    try {
      return await Promise.race([opening.opened, aborted.promise])
    } finally {
      signal?.removeEventListener('abort', onAbort)
      if (--opening.waiting === 0 && !opening.settled) this.#giveUp(opening)
    }
  }

  #start(): Opening {
    const stop = new AbortController()
    const opening: Opening = { opened: this.#begin(stop.signal), stop, waiting: 0, settled: false }
    const forget = () => {
      opening.settled = true
      if (this.#open === opening) this.#open = undefined
    }
    opening.opened.then(({ session }) => {
      opening.settled = true
      if (session.closed.aborted) forget()
      else session.closed.addEventListener('abort', forget, { once: true })
    }, forget)
    return opening
  }

  /** Nobody waits any more: the next who asks must not wait for one that got stuck. */
  #giveUp(opening: Opening): void {
    opening.stop.abort()
    if (this.#open === opening) this.#open = undefined
  }

  /** One call. A service domain that was restarted since the last call is connected to anew first. */
  async call<T>(work: (service: WireService) => PromiseLike<T>, signal?: AbortSignal): Promise<T> {
    const { session, service } = await this.open(signal)
    return ask(session, () => work(service), signal)
  }

  /**
   * Waits until the other side can be reached again, with growing pauses. Throws `error` if it is not one of an absence
   * (or, with `evenBroken`, of a session cut off), or when it lasted longer than `reconnectMs`.
   */
  async again(error: unknown, signal: AbortSignal | undefined, evenBroken: boolean): Promise<void> {
    if (this.closed.aborted) throw this.closed.reason
    const away = CloudAppError.is(error) && AWAY.includes(error.code)
    if (!away && !(evenBroken && CloudAppError.is(error, 'ERR_CLOUDAPP_PROTOCOL'))) throw error
    const until = performance.now() + this.reconnectMs
    for (let wait = FIRST_WAIT; performance.now() < until; wait = Math.min(wait * 2, LONGEST_WAIT)) {
      // Half of it by chance, so that many clients of one service domain do not come back at one moment.
      const pause = (wait * (1 + Math.random())) / 2
      await sleep(pause, undefined, { signal: any(this.closed, signal), ref: true }).catch(() => undefined)
      if (this.closed.aborted) throw this.closed.reason
      if (signal?.aborted) return
      try {
        await this.open(signal)
        return
      } catch (again) {
        if (signal?.aborted) return
        if (!CloudAppError.is(again) || !AWAY.includes(again.code)) throw again
      }
    }
    throw error
  }

  /** Idempotent. */
  async close(): Promise<void> {
    if (!this.closed.aborted) this.#closed.abort(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The client is closed'))
    const open = this.#open
    if (open === undefined) return
    // What waits for a service domain that says nothing would wait for ever.
    if (!open.settled) this.#giveUp(open)
    else await open.opened.then(({ session }) => session.close()).catch(() => undefined)
  }

  async #begin(signal: AbortSignal): Promise<Open> {
    const channel = await this.#connect(signal)
    const session = openSession<never>(channel, { limits: LIMITS }) as unknown as Open['session']
    try {
      const { name, key, pass } = this.#hello
      const hello = { version: INTERFACE_VERSION, ...(name !== undefined && { client: name }) }
      let opened = await ask(session, () => session.remote.open({ ...hello, ...(pass && { pass }) }), signal)
      // A TLS channel has proved the key itself.
      if (key && channel.peer.kind !== 'tls') {
        const { service } = opened
        const made = channelPass(key, channel, await ask(session, () => service.describe(), signal))
        opened = await ask(session, () => session.remote.open({ ...hello, pass: made }), signal)
      }
      const { version } = answer('open', ANSWERS.open, opened)
      if (version < OLDEST_VERSION || version > INTERFACE_VERSION) {
        throw new CloudAppError(
          'ERR_CLOUDAPP_UNSUPPORTED',
          `The service domain chose version ${version}; this client speaks ${OLDEST_VERSION} to ${INTERFACE_VERSION}`,
        )
      }
      signal.throwIfAborted()
      return { session, service: opened.service as Open['service'] }
    } catch (error) {
      await session.close()
      if (this.closed.aborted) throw this.closed.reason
      throw error
    }
  }
}

/** A pass for one channel, by a customer's key: who is at its other end can use it nowhere else. `described` is not checked yet. */
export function channelPass(key: KeyPair, channel: Channel, described: unknown): string {
  const { service } = answer('describe', ANSWERS.description, described)
  return makePass(key, {
    service: parsePublicKey(service.key ?? ''),
    expires: Date.now() + PASS_LIFE,
    channel: channel.binding,
  })
}

/** One call in a session. What the other side offers may not be what it should: calling that is an error of its. */
export function ask<T>(session: Open['session'], work: () => PromiseLike<T>, signal?: AbortSignal): Promise<T> {
  const answered = async () => work()
  return session.settle(answered(), signal && { signal })
}

function any(...signals: (AbortSignal | undefined)[]): AbortSignal {
  return AbortSignal.any(signals.filter((signal) => signal !== undefined))
}
