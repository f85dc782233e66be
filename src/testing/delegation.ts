import type { DelegationPorts } from '../capabilities/delegation.js'
import {
  type Delegation,
  type Grant,
  KeyPair,
  makeDelegation,
  mintToken,
  type PublicKey,
  parseRights,
  type Right,
  type TokenText,
  tokenToText,
} from '../capabilities/index.js'
import { findWidening, narrowGrant } from '../capabilities/narrow.js'
import { momentAfter } from '../capabilities/time.js'
import { CloudAppError } from '../errors.js'
import type { GuestVm } from '../vmi/guest.js'
import type { SyntheticGuest } from './guest.js'
import type { SyntheticVmOptions } from './vm.js'

/** A delegation over a synthetic guest, and the customer's end of it. */
export interface TestDelegation<R extends Right> {
  /** What a service domain holds: exactly the parts its rights give. */
  readonly delegation: Delegation<R>
  /** Rights that were demanded and not held, as the audit log of a broker would have them. */
  readonly denied: readonly Right[]
  /** Ends it as the customer does: later use throws ERR_CLOUDAPP_REVOKED. */
  revoke(): void
  /** Ends it as time does: later use throws ERR_CLOUDAPP_EXPIRED. */
  expire(): void
}

/** How long a test's delegation says it lasts; nothing counts it down, {@link TestDelegation.expire} ends it. */
const LASTS_MS = 600_000

/**
 * A delegation over a synthetic guest with just these rights, as a broker in the same process would give it, without
 * tokens, limits or an audit log. What is not among the rights is not there.
 *
 * @throws ERR_CLOUDAPP_INVALID_ARGUMENT for a word that is no right
 *
 * @example
 * ```ts run
 * import { syntheticGuest, testDelegation } from '@cloudapp/sdk/testing'
 *
 * const { delegation, revoke } = testDelegation(syntheticGuest(), ['memory.read'])
 * assert.equal('write' in delegation.memory, false)
 * revoke()
 * await assert.rejects(delegation.memory.read([]), { code: 'ERR_CLOUDAPP_REVOKED' })
 * ```
 */
export function testDelegation<const R extends readonly Right[]>(
  guest: SyntheticGuest,
  rights: R,
  options: SyntheticVmOptions = {},
): TestDelegation<R[number]> {
  return hold(guest, parseRights(rights), options, [])
}

function hold<R extends Right>(
  guest: SyntheticGuest,
  rights: readonly Right[],
  options: SyntheticVmOptions,
  denied: Right[],
): TestDelegation<R> {
  const vm = guest.vm(options)
  const now = Date.now()
  const grant: Grant = {
    vm: { uuid: vm.identity.uuid, bootNonce: vm.identity.bootNonce },
    rights,
    notBefore: now,
    expires: now + LASTS_MS,
    audience: KeyPair.fromSeed(new Uint8Array(32).fill(1)).publicKey,
  }
  const { delegation, end } = makeDelegation<R>(grant, portsOf(vm, guest, grant, denied))
  const stop = (code: 'ERR_CLOUDAPP_REVOKED' | 'ERR_CLOUDAPP_EXPIRED', why: string) => () =>
    end(new CloudAppError(code, `the delegation over ${vm.identity.name} ${why}`, { vm: vm.identity.name }))
  return {
    delegation,
    denied,
    revoke: stop('ERR_CLOUDAPP_REVOKED', 'was revoked'),
    expire: stop('ERR_CLOUDAPP_EXPIRED', 'has expired'),
  }
}

function portsOf(vm: GuestVm, guest: SyntheticGuest, grant: Grant, denied: Right[]): DelegationPorts {
  const { memory, vcpus } = vm
  return {
    identity: vm.identity,
    kernel: (options) => vm.kernel(options),
    ...(memory === undefined ? {} : { memory }),
    ...(vcpus === undefined ? {} : { vcpus }),
    ...(vm.pause === undefined ? {} : { pause: vm.pause.bind(vm) }),
    ...(vm.events === undefined ? {} : { events: vm.events }),
    info: async () => ({ state: 'running', memoryBytes: BigInt(guest.ram.byteLength), vcpus: guest.cpus }),
    attenuate: async ({ rights, notBefore, expires, ...rest }) => {
      const narrowing = {
        ...rest,
        ...(rights === undefined ? {} : { rights }),
        ...(notBefore === undefined ? {} : { notBefore: momentAfter(notBefore, Date.now(), 'notBefore') }),
        ...(expires === undefined ? {} : { expires: momentAfter(expires, Date.now(), 'expires') }),
      }
      const wider = findWidening(grant, narrowing)
      if (wider !== undefined) {
        throw new CloudAppError('ERR_CLOUDAPP_TOKEN', `an attenuation may only narrow; it widens ${wider.dimension}`)
      }
      const inner = narrowGrant(grant, narrowing)
      return { grant: inner, ports: portsOf(vm, guest, inner, denied) }
    },
    denied: async (right) => {
      denied.push(right)
    },
    close: () => vm.close(),
  }
}

/** What a `ServiceDomain` takes as its broker: `broker: () => broker.connect()`. */
export interface TestSource {
  redeem(token: TokenText): Promise<Delegation<Right>>
  readonly closed: AbortSignal
  close(): Promise<void>
}

/**
 * A broker for one test: gives out tokens over synthetic guests and honours them, in this process. Tokens are real ones;
 * proof of possession, limits and the audit log are the real broker's.
 */
export class TestBroker {
  readonly #owner = KeyPair.fromSeed(new Uint8Array(32).fill(2))
  readonly #key = KeyPair.fromSeed(new Uint8Array(32).fill(3))
  readonly #granted = new Map<TokenText, () => TestDelegation<Right>>()
  readonly #live = new Map<TokenText, TestDelegation<Right>[]>()
  readonly #revoked = new Set<TokenText>()
  readonly #denied: Right[] = []

  /** Delegates rights over a guest; the token's text, for the option `tokens` of a service domain. */
  delegate(
    guest: SyntheticGuest,
    to: PublicKey,
    rights: readonly Right[],
    options: SyntheticVmOptions = {},
  ): TokenText {
    const { uuid, bootNonce } = guest.vm(options).identity
    const vm = { uuid, bootNonce }
    const audience = this.#key.publicKey
    const token = tokenToText(mintToken({ owner: this.#owner, vm, holder: to, rights, audience, expires: '10m' }))
    this.#granted.set(token, () => hold(guest, parseRights(rights), options, this.#denied))
    return token
  }

  /** Rights that were demanded over any of its delegations and not held. */
  get denied(): readonly Right[] {
    return this.#denied
  }

  /** Ends every delegation of a token; it is not honoured again. */
  revoke(token: TokenText): void {
    this.#revoked.add(token)
    for (const live of this.#live.get(token) ?? []) live.revoke()
    this.#live.delete(token)
  }

  /** A connection to it. */
  async connect(): Promise<TestSource> {
    const end = new AbortController()
    return {
      closed: end.signal,
      redeem: async (token) => this.#redeem(token),
      close: async () => end.abort(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the connection is closed')),
    }
  }

  #redeem(token: TokenText): Delegation<Right> {
    const grant = this.#granted.get(token)
    if (grant === undefined) throw new CloudAppError('ERR_CLOUDAPP_TOKEN', 'this broker gave out no such token')
    if (this.#revoked.has(token)) throw new CloudAppError('ERR_CLOUDAPP_REVOKED', 'the token was revoked')
    const made = grant()
    this.#live.set(token, [...(this.#live.get(token) ?? []), made])
    return made.delegation
  }
}
