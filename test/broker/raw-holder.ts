import { bindingOf } from '../../src/broker/binding.js'
import type { BrokerTarget } from '../../src/broker/connection.js'
import type { TransportBinding } from '../../src/capabilities/binding.js'
import type { KeyPair } from '../../src/capabilities/keys.js'
import { ProofResponder } from '../../src/capabilities/proof.js'
import type { Channel } from '../../src/transport/channel.js'
import { openSession, type Session } from '../../src/transport/session.js'
import { connectUnix } from '../../src/transport/unix.js'
import type { Host } from './host.js'

export type Proof = { challenge: Uint8Array; nonce: Uint8Array; signature: Uint8Array }

/** What a hostile holder calls: the far object without our client's manners. */
export interface RawStub {
  read(message: Uint8Array, job: number): Promise<Uint8Array>
  write(message: Uint8Array, job: number): Promise<Uint8Array>
  search(message: Uint8Array, job: number): Promise<Uint8Array>
  digest(message: Uint8Array, job: number): Promise<Uint8Array>
  walk(message: Uint8Array, job: number): Promise<Uint8Array>
  registers(): Promise<unknown>
  pause(): Promise<unknown>
}

/** A holder that speaks the wire itself, to say what our client never would. */
export class RawHolder {
  private constructor(
    readonly host: Host,
    readonly key: KeyPair,
    readonly session: Session<unknown>,
  ) {}

  /** Over the broker's unix socket, or over `channel`. */
  static async open(host: Host, key: KeyPair = host.holder, channel?: Channel): Promise<RawHolder> {
    const session = openSession<BrokerTarget>(channel ?? (await connectUnix({ path: host.socket })))
    return new RawHolder(host, key, session as unknown as Session<unknown>)
  }

  /** A proof for a fresh challenge, as if on the connection `binding` tells of. */
  async prove(token: Uint8Array, binding?: TransportBinding): Promise<Proof> {
    const remote = this.session.remote as { hello(): Promise<{ challenge: Uint8Array }> }
    const { challenge } = await this.session.settle(remote.hello())
    const broker = this.host.brokerKey.publicKey
    const responder = new ProofResponder({
      key: this.key,
      token,
      broker,
      binding: binding ?? bindingOf(this.session.channel, 'holder'),
    })
    return { challenge, ...responder.respond({ broker, nonce: challenge }) }
  }

  async present(token: Uint8Array, proof: Proof): Promise<RawStub> {
    return (await this.#present(token, proof)).delegation
  }

  async redeem(token: Uint8Array): Promise<RawStub> {
    return this.present(token, await this.prove(token))
  }

  /** Redeems, and tells only the broker's number of the capability, by which it is released. */
  async number(token: Uint8Array): Promise<number> {
    return (await this.#present(token, await this.prove(token))).number
  }

  close(): Promise<void> {
    return this.session.close()
  }

  #present(token: Uint8Array, proof: Proof): Promise<{ delegation: RawStub; number: number }> {
    const remote = this.session.remote as {
      redeem(token: Uint8Array, proof: Proof): Promise<{ delegation: RawStub; number: number }>
    }
    return this.session.settle(remote.redeem(token, proof))
  }
}
