import { createHash } from 'node:crypto'
import { RpcTarget } from 'capnweb'
import type { Grant } from '../capabilities/caveats.js'
import type { PublicKey } from '../capabilities/keys.js'
import { ProofVerifier } from '../capabilities/proof.js'
import { parseToken } from '../capabilities/token.js'
import { verifyToken } from '../capabilities/verify.js'
import { CloudAppError } from '../errors.js'
import type { Channel } from '../transport/channel.js'
import { type Deferred, deferred } from '../transport/deferred.js'
import { Gate } from '../transport/gate.js'
import { openSession, type Session } from '../transport/session.js'
import type { VmIdentity } from '../vmi/guest.js'
import { LIMITS } from '../vmi/memory.js'
import { bindingOf, peerText, transportOf } from './binding.js'
import type { BrokerCore } from './core.js'
import { DelegationTarget } from './delegation-target.js'
import { KeySchema, ProofSchema, parseArgument, TokenSchema, type WireProof } from './edge.js'
import { SubscriptionQuota } from './held-events.js'
import { Lease } from './lease.js'
import { OwnerTarget } from './owner-target.js'

/** The version of this interface; a client of another one is told so. */
export const BROKER_PROTOCOL = 1

/** What stands in the place of a token's hash when a VM's owner proves who they are. */
export const OWNER_CONTEXT = new Uint8Array(Buffer.from('cloudapp owner session v1'))

/** Bytes of a message before anybody has proved anything; a token and a proof fit well. */
const STRANGER_FRAME = 64 * 1024

/** Bytes of a message of a holder: a batch of writes and what is around it. */
const HOLDER_FRAME = LIMITS.readLength + 1024 * 1024

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
  readonly name: string
  #serial = 0
  #refusals = 0
  #ended: Ended[] = []
  #listening: Deferred<void> | undefined

  constructor(core: BrokerCore, channel: Channel, name: string) {
    this.#core = core
    this.name = name
    this.peer = peerText(channel)
    this.#verifier = new ProofVerifier(core.key, bindingOf(channel, 'broker'))
    this.#gate = new Gate({ running: 8, weight: LIMITS.resultBytes, queued: 256 })
    this.#session = openSession(channel, {
      main: new BrokerTarget(this),
      limits: { frameBytes: STRANGER_FRAME },
    }) as Session<unknown>
    this.#session.closed.addEventListener('abort', () => this.#gone(), { once: true })
  }

  get closed(): AbortSignal {
    return this.#session.closed
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
      const issuer = parseToken(bytes).blocks[0]?.issuer
      const token = verifyToken(bytes, {
        broker: core.key.publicKey,
        ownerOf: core.register.ownerOf,
        now: core.clock.now(),
        revoked: (id) => issuer !== undefined && core.state.revokedAt(issuer, id) !== undefined,
        transport: transportOf(this.#session.channel),
      })
      const accept = this.#verify(wire, token)
      const owned = core.register.byUuid(token.grant.vm.uuid)
      if (owned === undefined) throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', 'The VM has gone')
      await core.recorder.must({
        action: 'token.redeem',
        outcome: 'allowed',
        vm: owned.name,
        block: token.ids[token.ids.length - 1] as string,
        holder: token.holder,
        session: this.name,
        peer: this.peer,
        details: { rights: token.grant.rights.join(' '), blocks: token.blocks.length },
      })
      const vm = await core.vms.get(owned.uuid)
      // Revoked while the record was written or the VM was opened: the lease's first check would find it, but nobody
      // would have ended it.
      const lease = new Lease(core, token, owned.name, this.name, this.#gate, this.#quota)
      this.#session.setLimits({ frameBytes: HOLDER_FRAME })
      const number = ++this.#serial
      this.#leases.set(number, lease)
      core.leases.add(lease)
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
    if (lease !== undefined) this.#core.end(lease, closedError())
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
      if (CloudAppError.is(error)) await this.#core.recorder.refusedPeer(this.peer, this.name, action, error)
      // A token that was good once is no guess.
      const guess = !CloudAppError.is(error, 'ERR_CLOUDAPP_REVOKED') && !CloudAppError.is(error, 'ERR_CLOUDAPP_EXPIRED')
      if (guess && ++this.#refusals >= MAX_REFUSALS) setImmediate(() => void this.close())
      throw error
    }
  }

  #tell(number: number, reason: CloudAppError): void {
    this.#leases.delete(number)
    this.#ended.push({ number, code: reason.code, message: reason.message })
    this.#listening?.resolve()
    this.#listening = undefined
  }

  #gone(): void {
    for (const lease of [...this.#leases.values()]) this.#core.end(lease, closedError())
    // Who waited for news is gone; what waits must not be left behind.
    this.#listening?.reject(this.#session.closed.reason)
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
