/** Whose work it is. Turns go round by `owner`, and among an owner's by `session`. */
export interface Party {
  readonly owner: string
  readonly session: string
}

/** Milliseconds of short pieces of work that go together, before a long one. */
const SHORT_MS = 0.5
/** Milliseconds of short pieces of one party, before another's. */
const SHORT_SLICE_MS = 0.1
/** Microseconds that a long piece of work may take. Whoever comes waits for one of them, and for short ones as long. */
export const LONG_US = 500

/**
 * Shares one thread among many parties, so that what one has to wait does not grow with what others ask for: of long work,
 * one piece is done in a turn of the event loop, and of short work as much as takes as long. A long piece waits for short
 * ones, but not for ever: the two share the thread by halves.
 *
 * What waits is kept here; how much that is, is for the callers to bound.
 */
export class Turns {
  readonly #short = new Round()
  readonly #long = new Round()
  #armed = false
  /** When the first short piece of this turn began. */
  #shortSince: number | undefined
  /** When the last long piece will have ended. */
  #longEnd = 0
  /** Whose short pieces are next, and until when. */
  #served: { readonly session: string; readonly until: number } | undefined

  /** Asks to do a short piece of work; nothing is returned if it may be done at once. If `signal` fires, the wait is over. */
  short(party: Party, signal?: AbortSignal): Promise<void> | undefined {
    const now = performance.now()
    if (this.#served?.session === party.session && now < this.#served.until) return undefined
    this.#arm()
    if (this.#short.size === 0) {
      this.#shortSince ??= now
      if (now - this.#shortSince < SHORT_MS) return undefined
    }
    return this.#short.wait(party, signal)
  }

  /** Asks to do {@link LONG_US} of work. If `signal` fires, the wait is over. */
  long(party: Party, signal?: AbortSignal): Promise<void> {
    this.#arm()
    return this.#long.wait(party, signal)
  }

  #arm(): void {
    if (this.#armed) return
    this.#armed = true
    setImmediate(() => this.#turn())
  }

  #turn(): void {
    const now = performance.now()
    this.#armed = false
    this.#shortSince = undefined
    this.#served = undefined
    if (this.#long.size > 0 && (this.#short.size === 0 || now >= this.#longEnd + SHORT_MS)) {
      this.#longEnd = now + LONG_US / 1000
      this.#long.serve()
      this.#armForRest()
    } else {
      this.#shortSince = now
      this.#serveShort(now)
    }
  }

  #serveShort(now: number): void {
    const party = now - (this.#shortSince ?? 0) < SHORT_MS ? this.#short.serve() : undefined
    if (party === undefined) {
      this.#armForRest()
      return
    }
    this.#served = { session: party.session, until: now + SHORT_SLICE_MS }
    // A tick that is asked for in a microtask comes when all of them have run, and with them what was served just now.
    queueMicrotask(() => process.nextTick(() => this.#serveShort(performance.now())))
  }

  #armForRest(): void {
    if (this.#short.size + this.#long.size > 0) this.#arm()
  }
}

type Waiter = () => void

/** Who waits: served in turn by owner, then by session, then as they came. */
class Round {
  /** A map is in the order of insertion: who was served is put in again, at the end. */
  readonly #owners = new Map<string, Map<string, Set<Waiter>>>()
  size = 0

  wait(party: Party, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve) => {
      const waiter = () => {
        signal?.removeEventListener('abort', left)
        resolve()
      }
      const left = () => {
        this.#remove(party, waiter)
        resolve()
      }
      if (signal?.aborted === true) return resolve()
      signal?.addEventListener('abort', left, { once: true })
      const sessions = this.#owners.get(party.owner) ?? new Map<string, Set<Waiter>>()
      this.#owners.set(party.owner, sessions)
      const waiters = sessions.get(party.session) ?? new Set()
      sessions.set(party.session, waiters)
      waiters.add(waiter)
      this.size++
    })
  }

  serve(): Party | undefined {
    for (const [owner, sessions] of this.#owners) {
      for (const [session, waiters] of sessions) {
        for (const waiter of waiters) {
          this.#remove({ owner, session }, waiter)
          if (sessions.delete(session)) sessions.set(session, waiters)
          if (this.#owners.delete(owner)) this.#owners.set(owner, sessions)
          waiter()
          return { owner, session }
        }
      }
    }
    return undefined
  }

  #remove({ owner, session }: Party, waiter: Waiter): void {
    const sessions = this.#owners.get(owner)
    const waiters = sessions?.get(session)
    if (sessions === undefined || waiters?.delete(waiter) !== true) return
    this.size--
    if (waiters.size === 0) sessions.delete(session)
    if (sessions.size === 0) this.#owners.delete(owner)
  }
}
