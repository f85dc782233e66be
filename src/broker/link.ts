import type { TransportBinding } from '../capabilities/binding.js'
import { isPublicKey, type KeyPair, type PublicKey } from '../capabilities/keys.js'
import type { ProofHello } from '../capabilities/proof.js'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import type { Channel } from '../transport/channel.js'
import { connectEndpoint } from '../transport/endpoint.js'
import { openSession, type Session } from '../transport/session.js'
import { LIMITS } from '../vmi/memory.js'
import { bindingOf } from './binding.js'

/** What a client takes from a broker in one message: the largest result and what is around it. */
const ANSWER_FRAME = LIMITS.resultBytes + 16 * 1024 * 1024

/** The protocol this client speaks. */
const PROTOCOL = 1

export interface ConnectOptions {
  /** The broker's unix socket, or another endpoint, such as `tls:HOST:PORT`, for which `broker` must be given. */
  readonly path?: string
  /** Or a channel to it, which then belongs to the connection. */
  readonly channel?: Channel
  /** Whose tokens are redeemed, or whose VMs are administered. */
  readonly key: KeyPair
  /** The broker that is expected; another one is refused. */
  readonly broker?: PublicKey
  /** ms until ERR_CLOUDAPP_TIMEOUT while connecting. 10,000 by default. */
  readonly timeout?: number
  readonly signal?: AbortSignal
}

/** The main object of a broker, as a client calls it. */
export interface BrokerStub {
  hello(): PromiseLike<unknown>
  redeem(token: Uint8Array, proof: object): PromiseLike<unknown>
  owner(key: PublicKey, proof: object): PromiseLike<unknown>
  ended(): PromiseLike<{ number: number; code: string; message: string }[]>
  release(number: number): PromiseLike<void>
}

/** A session with a broker, before anything is proven. */
export interface BrokerLink {
  readonly session: Session<unknown>
  readonly remote: BrokerStub
  readonly broker: PublicKey
  /** A fresh challenge, and what the proof is bound to. */
  challenge(signal?: AbortSignal): Promise<{ readonly hello: ProofHello; readonly binding: TransportBinding }>
}

export async function connectLink(name: string, options: ConnectOptions): Promise<BrokerLink> {
  checkOptions(name, options, ['path', 'channel', 'key', 'broker', 'timeout', 'signal'])
  const { path, signal, timeout = 10_000 } = options
  if ((path === undefined) === (options.channel === undefined)) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${name}: give either a path or a channel`)
  }
  const channel =
    options.channel ??
    (await connectEndpoint(path as string, {
      key: options.key,
      timeout,
      ...(options.broker === undefined ? {} : { peer: options.broker }),
      ...(signal === undefined ? {} : { signal }),
    }))
  const session = openSession(channel, { limits: { frameBytes: ANSWER_FRAME } }) as Session<unknown>
  const remote = session.remote as BrokerStub
  const challenge = async (stop?: AbortSignal) => {
    const hello = parseHello(await session.settle(remote.hello(), stop === undefined ? {} : { signal: stop }))
    return { hello, binding: bindingOf(channel, 'holder') }
  }
  try {
    const limit = AbortSignal.timeout(timeout)
    const { hello } = await challenge(signal === undefined ? limit : AbortSignal.any([signal, limit])).catch(
      (error) => {
        if (!limit.aborted) throw error
        throw new CloudAppError('ERR_CLOUDAPP_TIMEOUT', `The broker did not answer within ${timeout} ms`, {
          cause: error,
        })
      },
    )
    // Over TLS the transport has proved a key already: the broker is that one.
    const expected = channel.peer.kind === 'tls' ? channel.peer.key : options.broker
    if (expected !== undefined && expected !== hello.broker) {
      throw new CloudAppError('ERR_CLOUDAPP_PROOF', `The broker there is ${hello.broker}, not ${expected}`)
    }
    return { session, remote, broker: hello.broker, challenge }
  } catch (error) {
    await session.close()
    throw error
  }
}

function parseHello(answer: unknown): ProofHello {
  const { protocol, broker, challenge } = (answer ?? {}) as Record<string, unknown>
  if (protocol !== PROTOCOL) {
    throw new CloudAppError(
      'ERR_CLOUDAPP_UNSUPPORTED',
      `The broker speaks protocol ${String(protocol)}, not ${PROTOCOL}`,
    )
  }
  if (!isPublicKey(broker) || !(challenge instanceof Uint8Array)) {
    throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', 'The broker introduced itself wrongly')
  }
  return { broker, nonce: challenge }
}
