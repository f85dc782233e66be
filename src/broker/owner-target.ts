import { RpcTarget } from 'capnweb'
import type { PublicKey } from '../capabilities/keys.js'
import { CloudAppError } from '../errors.js'
import type { AuditHead } from './audit/types.js'
import type { BrokerCore } from './core.js'
import type { DirectEnd } from './direct/lease.js'
import { BlockSchema, HardSchema, parseArgument } from './edge.js'

/** A VM as its owner sees it at the broker. */
export interface OwnVm {
  readonly name: string
  readonly uuid: string
  readonly bootNonce: string
}

/** A live use of a capability over one of the owner's VMs. */
export interface OwnLease {
  readonly vm: string
  /** The chain's blocks, root first: each can be revoked. */
  readonly blocks: readonly string[]
  readonly holder: PublicKey
  readonly rights: readonly string[]
  /** Milliseconds since 1970 UTC. */
  readonly expires: number
}

/** What revoking did. */
export interface Revoked {
  /** Capabilities that lived at the broker and ended. */
  readonly ended: number
  /** Leases of direct access that ended (docs/flask.md). A capability can have both; one right can have two of these. */
  readonly direct: number
  /**
   * False if this broker knows of nothing that had the block: no token with it was redeemed since the broker started, no direct
   * access was given by it, and it was not revoked before. It is revoked all the same.
   */
  readonly seen: boolean
  /** Names of service domains that were destroyed. */
  readonly destroyed: readonly string[]
}

/** What the owner of VMs may do: see who uses what, and take it back. */
export class OwnerTarget extends RpcTarget {
  readonly #core: BrokerCore
  readonly #owner: PublicKey
  readonly #session: string

  constructor(core: BrokerCore, owner: PublicKey, session: string) {
    super()
    this.#core = core
    this.#owner = owner
    this.#session = session
  }

  vms(): OwnVm[] {
    return this.#core.register
      .list()
      .filter(({ owner }) => owner === this.#owner)
      .map(({ name, uuid, bootNonce }) => ({ name, uuid, bootNonce }))
  }

  leases(): OwnLease[] {
    return [...this.#core.leases]
      .filter(({ token }) => token.issuer === this.#owner)
      .map(({ vmName, token }) => ({
        vm: vmName,
        blocks: [...token.ids],
        holder: token.holder,
        rights: [...token.grant.rights],
        expires: token.grant.expires,
      }))
  }

  /**
   * Takes back a block of a chain this owner began, and everything derived from it. From the moment this is called nothing
   * is given out under it; it resolves when that is on the disk and what ran has ended, direct access included. `hard` also
   * destroys the service domains that had direct access by it, and with them what they keep mapped.
   */
  async revoke(block: unknown, hard?: unknown): Promise<Revoked> {
    const id = parseArgument('block', BlockSchema, block)
    const destroys = parseArgument('hard', HardSchema, hard)
    const core = this.#core
    const { state, clock, recorder } = core
    const known = core.seen.has(this.#owner, id) || state.revokedAt(this.#owner, id) !== undefined
    const durable = state.revoke(this.#owner, id, clock.now())
    const hit = [...core.leases].filter(({ token }) => token.issuer === this.#owner && token.ids.includes(id))
    // One error for each VM: a hundred of them take longer than all the rest.
    const reasons = new Map<string, CloudAppError>()
    for (const lease of hit) {
      const vm = lease.vmName
      const reason =
        reasons.get(vm) ??
        new CloudAppError('ERR_CLOUDAPP_REVOKED', 'The owner revoked the capability', { vm, details: { block: id } })
      reasons.set(vm, reason)
      core.end(lease, reason)
    }
    await Promise.all([durable, ...hit.map((lease) => lease.drained())])
    await recorder.vital({
      action: 'capability.revoke',
      outcome: 'allowed',
      block: id,
      holder: this.#owner,
      session: this.#session,
      details: { ended: hit.length },
    })
    const direct = await this.#endDirect(id, destroys)
    const seen = known || direct.ended > 0
    return { ended: hit.length, direct: direct.ended, seen, destroyed: direct.destroyed }
  }

  /** @throws CloudAppError what kept the supervisor from it; the token is revoked all the same, and it tries again. */
  async #endDirect(block: string, hard: boolean): Promise<DirectEnd> {
    const { direct, recorder } = this.#core
    if (direct === undefined) {
      if (!hard) return { ended: 0, destroyed: [] }
      const why = 'the broker knows of no supervisor of direct access: there is nothing to be destroyed'
      throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', why)
    }
    const about = { action: 'direct.end', block, holder: this.#owner, session: this.#session }
    try {
      const end = await direct.end(this.#owner, block, hard)
      for (const name of end.destroyed) {
        await recorder.vital({ ...about, action: 'host.destroy', outcome: 'allowed', vm: name })
      }
      if (end.ended > 0) await recorder.vital({ ...about, outcome: 'allowed', details: { ended: end.ended, hard } })
      return end
    } catch (error) {
      const code = CloudAppError.is(error) ? error.code : 'ERR_CLOUDAPP_SOURCE'
      await recorder.vital({ ...about, outcome: 'failed', code, details: { hard } })
      const why = error instanceof Error ? error.message : String(error)
      const message = `revoked at the broker, but its supervisor did not say that direct access has ended: ${why}`
      throw new CloudAppError(code, message, { cause: error })
    }
  }

  /** The broker's signed word on how far its audit log has come; with it, a log that was cut is found out. */
  auditHead(): Promise<AuditHead> {
    return this.#core.audit.head()
  }
}
