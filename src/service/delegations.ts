import { setTimeout as sleep } from 'node:timers/promises'
import type { Delegation } from '../capabilities/delegation.js'
import { inspectToken } from '../capabilities/inspect.js'
import type { PublicKey } from '../capabilities/keys.js'
import { isRight, type Right } from '../capabilities/rights.js'
import { type TokenText, tokenFromText } from '../capabilities/token.js'
import { CloudAppError, type CloudAppErrorCode } from '../errors.js'
import type { HealthState } from './health.js'

/** Where tokens become delegations: a connection to a broker, or a broker in the same process. */
export interface DelegationSource {
  /** Redeems a token with the service domain's key. Throws ERR_CLOUDAPP_TOKEN, _PROOF, _REVOKED, _EXPIRED for good. */
  redeem(token: TokenText): Promise<Delegation<Right>>
  /** Fires when the connection has ended; a new one is made then. */
  readonly closed: AbortSignal
  close(): Promise<void>
}

/** A delegation that is held at present, and what its token says. */
export interface HeldDelegation {
  readonly delegation: Delegation<Right>
  /** Id of the token's last block: what allowed the look. Empty where the token is not one of ours to read. */
  readonly block: string
  /** Whose VM it is: the key that signed the token's root, which the broker checked against its register. */
  readonly owner?: PublicKey
}

/** After these, asking again is of no use. */
const FINAL: readonly CloudAppErrorCode[] = [
  'ERR_CLOUDAPP_TOKEN',
  'ERR_CLOUDAPP_PROOF',
  'ERR_CLOUDAPP_REVOKED',
  'ERR_CLOUDAPP_EXPIRED',
  'ERR_CLOUDAPP_DENIED',
  'ERR_CLOUDAPP_INVALID_ARGUMENT',
]

const FIRST_WAIT = 200
const LONGEST_WAIT = 15_000

interface Options {
  connect(): Promise<DelegationSource>
  readonly health: HealthState
  /** Handles one delegation until it ends. */
  readonly onDelegation: (held: HeldDelegation) => void
}

/** Holds tokens: redeems each, again when the broker was away, until it is revoked, expired or withdrawn. */
export class TokenKeeper {
  readonly #options: Options
  readonly #tokens = new Map<TokenText, { stop: AbortController; done: Promise<void> }>()
  readonly #held = new Set<HeldDelegation>()
  #source: Promise<DelegationSource> | undefined

  constructor(options: Options) {
    this.#options = options
  }

  /** Delegations held at present. */
  get held(): ReadonlySet<HeldDelegation> {
    return this.#held
  }

  /** Takes a token on; one already held is left alone. `from` names where it came from. */
  add(text: TokenText, from: string): void {
    if (this.#tokens.has(text)) return
    const stop = new AbortController()
    this.#tokens.set(text, { stop, done: this.#keep(text, from, stop.signal) })
  }

  /** Lets go of a token and of what was redeemed for it. */
  async remove(text: TokenText): Promise<void> {
    const entry = this.#tokens.get(text)
    if (!entry) return
    this.#tokens.delete(text)
    entry.stop.abort()
    await entry.done
  }

  /** Lets go of all. Idempotent. */
  async close(): Promise<void> {
    for (const { stop } of this.#tokens.values()) stop.abort()
    // First the connection: a redemption that waits for an answer ends with it.
    const source = await this.#source?.catch(() => undefined)
    await source?.close()
    await Promise.all([...this.#tokens.keys()].map((text) => this.remove(text)))
  }

  async #keep(text: TokenText, from: string, stop: AbortSignal): Promise<void> {
    const health = this.#options.health
    const origin = `token ${from}`
    let wait = FIRST_WAIT
    while (!stop.aborted) {
      try {
        const source = await this.#connection()
        const delegation = await source.redeem(text)
        wait = FIRST_WAIT
        health.ok(origin)
        await this.#hold({ delegation, ...wordsOf(text) }, stop)
        if (!stop.aborted) throw delegation.closed.reason
      } catch (error) {
        if (stop.aborted) return
        const final = CloudAppError.is(error) && FINAL.includes(error.code)
        // A right that ended as its owner wished is no fault of the service domain.
        const ended = CloudAppError.is(error, 'ERR_CLOUDAPP_REVOKED') || CloudAppError.is(error, 'ERR_CLOUDAPP_EXPIRED')
        if (ended) health.ok(origin)
        else health.fail(origin, error, 'unknown')
        if (final) return
        await sleep(wait, undefined, { signal: stop, ref: false }).catch(() => undefined)
        wait = Math.min(wait * 2, LONGEST_WAIT)
      }
    }
  }

  async #hold(held: HeldDelegation, stop: AbortSignal): Promise<void> {
    const { delegation } = held
    this.#held.add(held)
    try {
      this.#options.onDelegation(held)
      await fired(delegation.closed, stop)
    } finally {
      this.#held.delete(held)
      await delegation.close()
    }
  }

  #connection(): Promise<DelegationSource> {
    if (this.#source) return this.#source
    const source = this.#options.connect()
    this.#source = source
    const forget = () => {
      if (this.#source === source) this.#source = undefined
    }
    source.then(({ closed }) => {
      if (closed.aborted) forget()
      else closed.addEventListener('abort', forget, { once: true })
    }, forget)
    return source
  }
}

/** Resolves when one of the signals has fired. */
function fired(...signals: readonly AbortSignal[]): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      for (const signal of signals) signal.removeEventListener('abort', done)
      resolve()
    }
    if (signals.some((signal) => signal.aborted)) return done()
    for (const signal of signals) signal.addEventListener('abort', done)
  })
}

function wordsOf(text: TokenText): Omit<HeldDelegation, 'delegation'> {
  try {
    const { blocks, issuer } = inspectToken(tokenFromText(text))
    return { block: blocks.at(-1)?.id ?? '', owner: issuer }
  } catch {
    // The source redeemed it, so it is good for the source; only we can not read it.
    return { block: '' }
  }
}

/** Throws ERR_CLOUDAPP_INVALID_ARGUMENT unless all are rights. */
export function assertRights(rights: readonly unknown[]): asserts rights is readonly Right[] {
  for (const right of rights) {
    if (isRight(right)) continue
    throw new CloudAppError(
      'ERR_CLOUDAPP_INVALID_ARGUMENT',
      `${JSON.stringify(String(right).slice(0, 40))} is no right`,
    )
  }
}
