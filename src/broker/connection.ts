import { createHash } from 'node:crypto'
import { setMaxListeners } from 'node:events'
import { RpcTarget } from 'capnweb'
import type { Grant } from '../capabilities/caveats.js'
import type { PublicKey } from '../capabilities/keys.js'
import { ProofVerifier } from '../capabilities/proof.js'
import { parseToken } from '../capabilities/token.js'
import { type VerifiedToken, verifyTokenSteps } from '../capabilities/verify.js'
import { CloudAppError } from '../errors.js'
import { type Channel, quotaGroup } from '../transport/channel.js'
import { type Deferred, deferred } from '../transport/deferred.js'
import { Gate } from '../transport/gate.js'
import { openSession, type Session } from '../transport/session.js'
import type { Party } from '../transport/turns.js'
import type { VmIdentity } from '../vmi/guest.js'
import { LIMITS } from '../vmi/memory.js'
import { bindingOf, peerText, transportOf } from './binding.js'
import type { BrokerCore } from './core.js'
import { DelegationTarget } from './delegation-target.js'
import { KeySchema, ProofSchema, parseArgument, TokenSchema, type WireProof } from './edge.js'
import { SubscriptionQuota } from './held-events.js'
import { delegateOf, Lease } from './lease.js'
import { OwnerTarget } from './owner-target.js'
import { TurnPace } from './pace.js'

/** The version of this interface; a client of another one is told so. */
export const BROKER_PROTOCOL = 1

/** What stands in the place of a token's hash when a VM's owner proves who they are. */
export const OWNER_CONTEXT = new Uint8Array(Buffer.from('cloudapp owner session v1'))

/** Bytes of a message before anybody has proved anything; a token and a proof fit well. */
const STRANGER_FRAME = 64 * 1024

/** Bytes of a message of a holder: the largest batch of requests; or of writes, where it may write. */
const READER_FRAME = 4 * 1024 * 1024
const WRITER_FRAME = LIMITS.readLength + 1024 * 1024

/** Values in one message, the largest being an event program: what is many is bytes, which are read without making values. */
const ITEMS = 4096

/** How long a peer has to prove something before it may be closed to make room, in ms. */
const STRANGER_MS = 10_000

/** Live capabilities that come from what one delegate was given, over all sessions. */
const MAX_LEASES_OF_DELEGATE = 4096

/** Ends a peer has not asked for: the oldest are forgotten, and show when the capability is used. */
const MAX_UNTOLD = 1024

/** Live capabilities of one session. */
const MAX_LEASES = 256

/** Refusals after which a session is closed: a token is not guessed. */
const MAX_REFUSALS = 16

/** What `redeem` answers. */
export interface Redeemed {
  /** By which `ended` names it. */
  readonly number: number
  /** Lets the holder check the broker. */
  readonly accept: Uint8Array
  readonly delegation: DelegationTarget
  readonly identity: VmIdentity
  readonly grant: Grant
  readonly memoryEnd: bigint
  readonly parts: {
    readonly memory: boolean
    readonly write: boolean
    readonly vcpus: boolean
    readonly pause: boolean
    readonly events: boolean
  }
}

/** A capability that has ended. */
export interface Ended {
  readonly number: number
  readonly code: string
  readonly message: string
}

/** One peer at the broker, from its connection to its end. */
export class Connection {
  readonly #core: BrokerCore
  readonly #session: Session<unknown>
  readonly #verifier: ProofVerifier
  readonly #leases = new Map<number, Lease>()
  readonly #gate: Gate
  readonly #quota = new SubscriptionQuota()
  readonly peer: string
  /** Who shares bounds with it. */
  readonly group: string
  readonly name: string
  readonly #since = performance.now()
  /** Whose turn its messages take: its user's or address's, until it has proved whose it is. */
  #party: Party
  /** Redeemed a token, or is an owner. */
  #proven = false
  #writer = false
  #serial = 0
  #refusals = 0
  #ended: Ended[] = []
  #listening: Deferred<void> | undefined

  constructor(core: BrokerCore, channel: Channel, name: string) {
    this.#core = core
    this.name = name
    this.peer = peerText(channel)
    this.group = quotaGroup(channel.peer)
    this.#party = { owner: this.group, session: name }
    this.#verifier = new ProofVerifier(core.key, bindingOf(channel, 'broker'))
    this.#gate = new Gate({ running: 8, weight: LIMITS.resultBytes, queued: 256 })
    this.#session = openSession(channel, {
      main: new BrokerTarget(this),
      limits: { frameBytes: STRANGER_FRAME, items: ITEMS },
      turn: () => core.turns.short(this.#party),
    }) as Session<unknown>
    // Redemptions wait for their turn, or for the end.
    setMaxListeners(0, this.#session.closed)
    this.#session.closed.addEventListener('abort', () => this.#gone(), { once: true })
  }

  get closed(): AbortSignal {
    return this.#session.closed
  }

  /** True for one that has had its time to prove anything, and has not: it makes room for another. */
  get idleStranger(): boolean {
    return !this.#proven && performance.now() - this.#since > STRANGER_MS
  }

  close(): Promise<void> {
    return this.#session.close()
  }

  hello(): { protocol: number; broker: PublicKey; challenge: Uint8Array } {
    const { broker, nonce } = this.#verifier.challenge()
    return { protocol: BROKER_PROTOCOL, broker, challenge: new Uint8Array(nonce) }
  }

  async redeem(tokenBytes: unknown, proof: unknown): Promise<Redeemed> {
    const core = this.#core
    return this.#guarded('token.redeem', async () => {
      const bytes = parseArgument('token', TokenSchema, tokenBytes)
      const wire = parseArgument('proof', ProofSchema, proof)
      if (this.#leases.size >= MAX_LEASES) {
        throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `A session has at most ${MAX_LEASES} capabilities`, {
          details: { limit: 'leases', most: MAX_LEASES },
        })
      }
      // Anybody can have a token verified: it waits for its turn among the long work of all.
      const pace = new TurnPace(core.turns, this.#party, this.closed, true)
      const token = await this.#token(bytes, pace)
      await pace.next()
      const accept = this.#verify(wire, token)
      const delegate = delegateOf(token)
      if ((core.held.get(delegate) ?? 0) >= MAX_LEASES_OF_DELEGATE) {
        throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `A delegate has at most ${MAX_LEASES_OF_DELEGATE} capabilities`, {
          details: { limit: 'leases', most: MAX_LEASES_OF_DELEGATE },
        })
      }
      const owned = core.register.byUuid(token.grant.vm.uuid)
      if (owned === undefined) throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', 'The VM has gone')
      const entry = {
        action: 'token.redeem',
        outcome: 'allowed' as const,
        vm: owned.name,
        block: token.ids[token.ids.length - 1] as string,
        holder: token.holder,
        session: this.name,
        peer: this.peer,
        details: { rights: token.grant.rights.join(' '), blocks: token.blocks.length },
      }
      await core.recorder.must(entry, delegate)
      const vm = await core.vms.get(owned.uuid)
      // Revoked while the record was written or the VM was opened: the lease's first check would find it, but nobody
      // would have ended it.
      const lease = new Lease(core, token, owned.name, this.name, this.#gate, this.#quota, this.#session)
      if (!this.#proven) this.#party = { owner: delegate, session: this.name }
      this.#proven = true
      this.#writer ||= token.grant.rights.includes('memory.write')
      this.#session.setLimits({ frameBytes: this.#writer ? WRITER_FRAME : READER_FRAME })
      const number = ++this.#serial
      this.#leases.set(number, lease)
      core.leases.add(lease)
      core.held.set(delegate, (core.held.get(delegate) ?? 0) + 1)
      const ended = () => this.#tell(number, lease.ended.reason as CloudAppError)
      lease.ended.addEventListener('abort', ended, { once: true })
      if (token.ids.some((id) => core.state.revokedAt(token.issuer, id) !== undefined)) {
        core.end(lease, new CloudAppError('ERR_CLOUDAPP_REVOKED', 'The capability was revoked', { vm: owned.name }))
      }
      return {
        number,
        accept,
        delegation: new DelegationTarget(lease),
        identity: { name: owned.name, uuid: owned.uuid, bootNonce: owned.bootNonce },
        grant: token.grant,
        memoryEnd: vm.memory?.end ?? 0n,
        parts: {
          memory: vm.memory !== undefined,
          write: vm.memory?.write !== undefined,
          vcpus: vm.vcpus !== undefined,
          pause: vm.pause !== undefined,
          events: vm.events !== undefined,
        },
      }
    })
  }

  async owner(key: unknown, proof: unknown): Promise<{ accept: Uint8Array; owner: OwnerTarget }> {
    return this.#guarded('owner.open', async () => {
      const holder = parseArgument('key', KeySchema, key)
      const wire = parseArgument('proof', ProofSchema, proof)
      await this.#core.turns.long(this.#party, this.closed)
      const hash = createHash('sha256').update(OWNER_CONTEXT).digest()
      const accept = this.#verify(wire, { holder, hash })
      if (!this.#core.register.list().some(({ owner }) => owner === holder)) {
        throw new CloudAppError('ERR_CLOUDAPP_DENIED', 'This key owns no VM on this host')
      }
      await this.#core.recorder.must({
        action: 'owner.open',
        outcome: 'allowed',
        holder,
        session: this.name,
        peer: this.peer,
      })
      if (!this.#proven) this.#party = { owner: holder, session: this.name }
      this.#proven = true
      return { accept, owner: new OwnerTarget(this.#core, holder, this.name) }
    })
  }

  /** The capabilities that ended since the last call; waits for one. */
  async ended(): Promise<Ended[]> {
    while (this.#ended.length === 0) {
      this.#listening ??= deferred()
      await this.#listening.promise
    }
    return this.#ended.splice(0)
  }

  /** The holder lets go of a capability. */
  release(number: unknown): void {
    const lease = typeof number === 'number' ? this.#leases.get(number) : undefined
    if (lease === undefined) return
    // It knows.
    this.#leases.delete(number as number)
    this.#core.end(lease, closedError())
  }

  async #token(bytes: Uint8Array, pace: TurnPace): Promise<VerifiedToken> {
    const { key, register, clock, state } = this.#core
    await pace.next()
    const issuer = parseToken(bytes).blocks[0]?.issuer
    const steps = verifyTokenSteps(bytes, {
      broker: key.publicKey,
      ownerOf: register.ownerOf,
      now: clock.now(),
      revoked: (id) => issuer !== undefined && state.revokedAt(issuer, id) !== undefined,
      transport: transportOf(this.#session.channel),
    })
    for (let step = steps.next(); ; step = steps.next()) {
      if (step.done === true) return step.value
      await pace.next()
      if (this.closed.aborted) throw this.closed.reason
    }
  }

  #verify(wire: WireProof, token: { readonly holder: PublicKey; readonly hash: Uint8Array }): Uint8Array {
    const { challenge, nonce, signature } = wire
    return new Uint8Array(this.#verifier.verify({ nonce: challenge }, { nonce, signature }, token).signature)
  }

  /** Records refusals, and ends a session that has too many of them. */
  async #guarded<T>(action: string, body: () => Promise<T>): Promise<T> {
    try {
      return await body()
    } catch (error) {
      if (CloudAppError.is(error))
        await this.#core.recorder.refusedPeer(this.group, this.peer, this.name, action, error)
      // A token that was good once is no guess.
      const guess = !CloudAppError.is(error, 'ERR_CLOUDAPP_REVOKED') && !CloudAppError.is(error, 'ERR_CLOUDAPP_EXPIRED')
      if (guess && ++this.#refusals >= MAX_REFUSALS) setImmediate(() => void this.close())
      throw error
    }
  }

  #tell(number: number, reason: CloudAppError): void {
    if (!this.#leases.delete(number)) return
    if (this.#ended.length >= MAX_UNTOLD) this.#ended.shift()
    this.#ended.push({ number, code: reason.code, message: reason.message })
    this.#listening?.resolve()
    this.#listening = undefined
  }

  #gone(): void {
    for (const lease of [...this.#leases.values()]) this.#core.end(lease, closedError())
    // Who waited for news is gone; what waits must not be left behind.
    this.#listening?.reject(this.#session.closed.reason)
    // What strangers do is not worth a record each: they could fill the log by coming and going.
    if (this.#proven)
      this.#core.recorder.note({ action: 'session.close', outcome: 'allowed', session: this.name, peer: this.peer })
  }
}

function closedError(): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The holder closed the capability')
}

/** What a peer finds at the broker. */
export class BrokerTarget extends RpcTarget {
  readonly #connection: Connection

  constructor(connection: Connection) {
    super()
    this.#connection = connection
  }

  hello(): ReturnType<Connection['hello']> {
    return this.#connection.hello()
  }

  redeem(token: unknown, proof: unknown): Promise<Redeemed> {
    return this.#connection.redeem(token, proof)
  }

  owner(key: unknown, proof: unknown): Promise<{ accept: Uint8Array; owner: OwnerTarget }> {
    return this.#connection.owner(key, proof)
  }

  ended(): Promise<Ended[]> {
    return this.#connection.ended()
  }

  release(number: unknown): void {
    this.#connection.release(number)
  }
}
