import { attenuateToken } from '../capabilities/attenuate.js'
import type { Grant } from '../capabilities/caveats.js'
import type { Budget, DelegatedProcess, Delegation, DelegationPorts, VmInfo } from '../capabilities/delegation.js'
import type { KeyPair } from '../capabilities/keys.js'
import { makeDelegation } from '../capabilities/make-delegation.js'
import { ProofResponder } from '../capabilities/proof.js'
import type { Right } from '../capabilities/rights.js'
import { parseToken, type TokenText, tokenFromText, tokenToText } from '../capabilities/token.js'
import { CloudAppError, type CloudAppErrorCode } from '../errors.js'
import { checkOptions } from '../options.js'
import { Gate } from '../transport/gate.js'
import type { Session } from '../transport/session.js'
import type { KernelProfileParts, PauseScope, VcpuRegisters, VmIdentity } from '../vmi/guest.js'
import { type BrokerLink, type ConnectOptions, connectLink } from './link.js'
import { RemoteEvents, type RemoteEventsStub } from './remote-events.js'
import { RemoteMemory, type RemoteMemoryStub } from './remote-memory.js'

export { connectOwner, type Granted, type OwnerConnection, type OwnerDelegateOptions } from './owner-client.js'
export type { ConnectOptions }

/** What a holder has of a broker: turns tokens into live capabilities. */
export interface BrokerConnection extends AsyncDisposable {
  /**
   * Redeems a token that is made out to this connection's key.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_TOKEN`, `ERR_CLOUDAPP_PROOF`, `ERR_CLOUDAPP_REVOKED`, `ERR_CLOUDAPP_EXPIRED`,
   *   `ERR_CLOUDAPP_SOURCE` if the VM can not be opened, `ERR_CLOUDAPP_CLOSED`.
   */
  redeem<R extends Right = Right>(
    token: TokenText | Uint8Array,
    options?: { readonly signal?: AbortSignal },
  ): Promise<Delegation<R>>
  /** Fires when the connection ends; every delegation of it has then ended too. */
  readonly closed: AbortSignal
  /** Idempotent; ends the delegations. */
  close(): Promise<void>
}

/**
 * Connects to a broker, over its unix socket (`path`) or a channel that exists.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` if no broker listens there, `ERR_CLOUDAPP_DENIED`, `ERR_CLOUDAPP_TIMEOUT`,
 *   `ERR_CLOUDAPP_UNSUPPORTED` for a broker of another protocol version.
 */
export async function connectBroker(options: ConnectOptions): Promise<BrokerConnection> {
  return new HolderConnection(await connectLink('connectBroker', options), options.key)
}

interface DelegationStub extends RemoteMemoryStub, RemoteEventsStub {
  registers(): PromiseLike<VcpuRegisters[]>
  info(): PromiseLike<VmInfo>
  processes(): PromiseLike<DelegatedProcess[]>
  budget(): PromiseLike<Budget>
  pause(): PromiseLike<{ close(): PromiseLike<void> }>
  kernel(): PromiseLike<Uint8Array>
  section(name: string): PromiseLike<Uint8Array>
  denied(right: Right): PromiseLike<void>
}

interface RedeemedAnswer {
  readonly number: number
  readonly accept: Uint8Array
  readonly delegation: DelegationStub
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

class HolderConnection implements BrokerConnection {
  readonly #link: BrokerLink
  readonly #key: KeyPair
  /** Of each capability, by the broker's number for it: what ends its handle. */
  readonly #ends = new Map<number, AbortController>()
  /** A broker keeps only so many challenges open: further redemptions wait for theirs. */
  readonly #redeeming = new Gate({ running: 4, weight: 4, queued: 4096 })
  #listening = false

  constructor(link: BrokerLink, key: KeyPair) {
    this.#link = link
    this.#key = key
    link.session.closed.addEventListener('abort', () => {
      for (const end of this.#ends.values()) end.abort(link.session.closed.reason)
      this.#ends.clear()
    })
  }

  get closed(): AbortSignal {
    return this.#link.session.closed
  }

  async redeem<R extends Right = Right>(
    token: TokenText | Uint8Array,
    options: { readonly signal?: AbortSignal } = {},
  ): Promise<Delegation<R>> {
    checkOptions('redeem', options, ['signal'])
    const bytes = typeof token === 'string' ? tokenFromText(token) : token
    const { grant, ports } = await this.#redeem(bytes, options.signal)
    return makeDelegation<R>(grant, ports).delegation
  }

  close(): Promise<void> {
    return this.#link.session.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #redeem(token: Uint8Array, signal?: AbortSignal): Promise<{ grant: Grant; ports: DelegationPorts }> {
    await this.#redeeming.enter(1)
    try {
      return await this.#redeemNow(token, signal)
    } finally {
      this.#redeeming.leave(1)
    }
  }

  async #redeemNow(token: Uint8Array, signal?: AbortSignal): Promise<{ grant: Grant; ports: DelegationPorts }> {
    const audience = parseToken(token).blocks[0]?.narrowing.audience
    if (audience === undefined) throw new CloudAppError('ERR_CLOUDAPP_TOKEN', 'The token names no broker')
    const { session, remote } = this.#link
    const { binding, hello } = await this.#link.challenge(signal)
    const responder = new ProofResponder({ key: this.#key, token, broker: audience, binding })
    if (hello.broker !== audience) {
      throw new CloudAppError('ERR_CLOUDAPP_TOKEN', `The token is for the broker ${audience}, not ${hello.broker}`, {
        details: { reason: 'audience' },
      })
    }
    const response = responder.respond(hello)
    const answer = (await session.settle(
      remote.redeem(token, { challenge: hello.nonce, ...response }),
      signal === undefined ? {} : { signal },
    )) as RedeemedAnswer
    responder.verify({ signature: answer.accept })
    this.#listen()
    return { grant: answer.grant, ports: this.#ports(token, answer) }
  }

  #endOf(number: number): AbortController {
    const end = this.#ends.get(number) ?? new AbortController()
    // The session may have ended meanwhile, and with it all its capabilities.
    if (this.closed.aborted) end.abort(this.closed.reason)
    else this.#ends.set(number, end)
    return end
  }

  #ports(token: Uint8Array, answer: RedeemedAnswer): DelegationPorts {
    const { delegation: stub, identity, parts, number } = answer
    const { session, remote } = this.#link
    const vcpus = {
      registers: (options: { readonly signal?: AbortSignal } = {}) => session.settle(stub.registers(), options),
    }
    const ports: DelegationPorts = {
      identity,
      ended: this.#endOf(number).signal,
      kernel: kernelOf(session, stub),
      ...(parts.memory ? { memory: new RemoteMemory(session, stub, answer.memoryEnd, parts.write) } : {}),
      ...(parts.vcpus ? { vcpus } : {}),
      ...(parts.pause ? { pause: () => pauseOf(session, stub) } : {}),
      ...(parts.events ? { events: new RemoteEvents(session, stub) } : {}),
      info: () => session.settle(stub.info()),
      processes: () => session.settle(stub.processes()),
      budget: () => session.settle(stub.budget()),
      denied: async (right) => {
        await session.settle(stub.denied(right)).catch((error: unknown) => {
          // The refusal itself comes back as the error it is.
          if (!CloudAppError.is(error, 'ERR_CLOUDAPP_DENIED')) throw error
        })
      },
      attenuate: (request) => this.#redeem(attenuateToken(token, { ...request, holder: this.#key })),
      delegate: async ({ to, ...request }) => tokenToText(attenuateToken(token, { ...request, holder: this.#key, to })),
      close: async () => {
        this.#ends.delete(number)
        if (!this.closed.aborted) await session.settle(remote.release(number)).catch(() => undefined)
      },
    }
    return ports
  }

  /** Hears from the broker which capabilities have ended, for as long as the connection lives. */
  #listen(): void {
    if (this.#listening) return
    this.#listening = true
    void this.#hear()
  }

  async #hear(): Promise<void> {
    const { session, remote } = this.#link
    while (!this.closed.aborted) {
      let ended: { number: number; code: string; message: string }[]
      try {
        ended = await session.settle(remote.ended())
      } catch {
        // The session has ended: its own signal tells everybody.
        return
      }
      for (const { number, code, message } of ended) {
        // An end may come before the answer that brings the handle: it waits there.
        this.#endOf(number).abort(new CloudAppError(code as CloudAppErrorCode, message))
      }
    }
  }
}

/** The kernel profile, each part fetched once. */
function kernelOf(session: Session<unknown>, stub: DelegationStub): DelegationPorts['kernel'] {
  let header: Promise<Uint8Array> | undefined
  const sections = new Map<string, Promise<Uint8Array>>()
  const section = (name: string): Promise<Uint8Array> => {
    const known = sections.get(name)
    if (known !== undefined) return known
    const fetched = session.settle(stub.section(name))
    sections.set(name, fetched)
    // A failure is not kept.
    fetched.catch(() => sections.delete(name))
    return fetched
  }
  return async ({ signal } = {}): Promise<KernelProfileParts> => {
    header ??= session.settle(stub.kernel())
    const mine = header
    mine.catch(() => {
      if (header === mine) header = undefined
    })
    return { header: await session.settle(mine, signal === undefined ? {} : { signal }), section }
  }
}

async function pauseOf(session: Session<unknown>, stub: DelegationStub): Promise<PauseScope> {
  const held = await session.settle(stub.pause())
  let closing: Promise<void> | undefined
  const close = () => {
    closing ??= session.settle(held.close()).finally(() => (held as unknown as Partial<Disposable>)[Symbol.dispose]?.())
    return closing
  }
  return { close, [Symbol.asyncDispose]: close }
}
