import type { Caveats } from '../capabilities/caveats.js'
import type { KeyPair, PublicKey } from '../capabilities/keys.js'
import { mintToken } from '../capabilities/mint.js'
import { ProofResponder } from '../capabilities/proof.js'
import type { Right } from '../capabilities/rights.js'
import type { Moment } from '../capabilities/time.js'
import { parseToken, type TokenText, tokenToText } from '../capabilities/token.js'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import type { AuditHead } from './audit/types.js'
import { type BrokerLink, type ConnectOptions, connectLink } from './link.js'
import type { OwnLease, OwnVm, Revoked } from './owner-target.js'

/** What an owner gives away. Further caveats of tokens may be given; what is absent is not limited. */
export interface OwnerDelegateOptions extends Omit<Caveats, 'notBefore' | 'expires' | 'audience'> {
  /** Name or uuid of one of the owner's VMs. */
  readonly vm: string
  /** The key of who gets the rights. */
  readonly to: PublicKey
  readonly rights: readonly Right[]
  /** A duration (`10m`), a Date, or ms since 1970 UTC. */
  readonly expires: Moment
  readonly notBefore?: Moment
}

/** A token that was given out. */
export interface Granted {
  /** For the holder. Without the holder's key it is of no use to anybody. */
  readonly token: TokenText
  /** What is revoked. */
  readonly blockId: string
  /** Milliseconds since 1970 UTC. */
  readonly expires: number
  /** Takes it back, and everything derived from it; resolves when nothing of it can work any more. */
  revoke(): Promise<void>
}

/** What the owner of VMs does at the broker. */
export interface OwnerConnection extends AsyncDisposable {
  /** The broker, to which tokens are made out. */
  readonly broker: PublicKey
  vms(): Promise<OwnVm[]>
  /** Capabilities over the owner's VMs that are in use now. */
  leases(): Promise<OwnLease[]>
  /**
   * Signs a token here; the broker is asked only which boot of the VM it is.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` for a VM that is not the owner's, `ERR_CLOUDAPP_INVALID_ARGUMENT`.
   */
  delegate(options: OwnerDelegateOptions): Promise<Granted>
  /**
   * Takes a block back, and everything derived from it. `hard` also destroys the service domains that had direct access by it:
   * what they have mapped, nothing else takes from them.
   *
   * @throws CloudAppError what kept direct access from ending; at the broker the block is revoked all the same.
   */
  revoke(blockId: string, options?: { readonly hard?: boolean }): Promise<Revoked>
  /** The broker's signed word on its audit log, to be kept: a log that is cut later is then found out. */
  auditHead(): Promise<AuditHead>
  readonly closed: AbortSignal
  /** Idempotent. */
  close(): Promise<void>
}

interface OwnerStub {
  vms(): PromiseLike<OwnVm[]>
  leases(): PromiseLike<OwnLease[]>
  revoke(block: string, hard: boolean): PromiseLike<Revoked>
  auditHead(): PromiseLike<AuditHead>
}

/**
 * Connects to a broker as the owner of VMs; `key` is the key the host's register names.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_DENIED` if the key owns no VM there, `ERR_CLOUDAPP_PROOF`, and what `connectBroker`
 *   throws.
 */
export async function connectOwner(options: ConnectOptions): Promise<OwnerConnection> {
  const link = await connectLink('connectOwner', options)
  try {
    const { hello, binding } = await link.challenge(options.signal)
    const context = new Uint8Array(Buffer.from('cloudapp owner session v1'))
    const responder = new ProofResponder({ key: options.key, token: context, broker: link.broker, binding })
    const response = responder.respond(hello)
    const answer = (await link.session.settle(
      link.remote.owner(options.key.publicKey, { challenge: hello.nonce, ...response }),
    )) as { accept: Uint8Array; owner: OwnerStub }
    responder.verify({ signature: answer.accept })
    return new Owner(link, options.key, answer.owner)
  } catch (error) {
    await link.session.close()
    throw error
  }
}

class Owner implements OwnerConnection {
  readonly #link: BrokerLink
  readonly #key: KeyPair
  readonly #stub: OwnerStub

  constructor(link: BrokerLink, key: KeyPair, stub: OwnerStub) {
    this.#link = link
    this.#key = key
    this.#stub = stub
  }

  get broker(): PublicKey {
    return this.#link.broker
  }

  get closed(): AbortSignal {
    return this.#link.session.closed
  }

  vms(): Promise<OwnVm[]> {
    return this.#link.session.settle(this.#stub.vms())
  }

  leases(): Promise<OwnLease[]> {
    return this.#link.session.settle(this.#stub.leases())
  }

  async delegate({ vm: wanted, to, ...options }: OwnerDelegateOptions): Promise<Granted> {
    const own = await this.vms()
    const vm = own.find(({ name, uuid }) => name === wanted || uuid === wanted)
    if (vm === undefined) {
      const names = own.map(({ name }) => name)
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `No VM '${wanted}' of yours is here (${names.join(', ')})`, {
        vm: wanted,
        details: { vms: names },
      })
    }
    const token = mintToken({
      ...options,
      vm: { uuid: vm.uuid, bootNonce: vm.bootNonce },
      owner: this.#key,
      holder: to,
      audience: this.broker,
    })
    const root = parseToken(token).blocks[0]
    const blockId = root?.id ?? ''
    const revoke = async () => {
      await this.revoke(blockId)
    }
    return { token: tokenToText(token), blockId, expires: root?.narrowing.expires ?? 0, revoke }
  }

  async revoke(blockId: string, options: { readonly hard?: boolean } = {}): Promise<Revoked> {
    checkOptions('OwnerConnection.revoke', options, ['hard'])
    return this.#link.session.settle(this.#stub.revoke(blockId, options.hard ?? false))
  }

  auditHead(): Promise<AuditHead> {
    return this.#link.session.settle(this.#stub.auditHead())
  }

  close(): Promise<void> {
    return this.#link.session.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}
