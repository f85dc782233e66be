import { RpcTarget } from 'capnweb'
import type { PublicKey } from '../capabilities/keys.js'
import { CloudAppError } from '../errors.js'
import type { AuditHead } from './audit/types.js'
import type { BrokerCore } from './core.js'
import { BlockSchema, parseArgument } from './edge.js'

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
   * is given out under it; it resolves when that is on the disk and what ran has ended.
   */
  async revoke(block: unknown): Promise<{ ended: number }> {
    const id = parseArgument('block', BlockSchema, block)
    const core = this.#core
    const { state, clock, recorder } = core
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
    return { ended: hit.length }
  }

  /** The broker's signed word on how far its audit log has come; with it, a log that was cut is found out. */
  auditHead(): Promise<AuditHead> {
    return this.#core.audit.head()
  }
}
