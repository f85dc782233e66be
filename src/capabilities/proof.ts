import { randomBytes } from 'node:crypto'
import { CloudAppError } from '../errors.js'
import { bindingHash, type TransportBinding } from './binding.js'
import { type KeyPair, type PublicKey, publicKeyBytes, verifySignature } from './keys.js'
import { tokenHash } from './token.js'

/**
 * Proof of possession, both ways, bound to one channel. Three messages, whatever carries them:
 *
 *     broker → holder   hello     { broker, nonce }
 *     holder → broker   response  { nonce, signature }      beside the token
 *     broker → holder   accept    { signature }
 *
 * Both signatures are over the broker's key, the holder's key, both nonces, the channel's binding and the token's hash:
 * nothing of it is of use on another channel, at another broker, for another token, or twice.
 */
export interface ProofHello {
  readonly broker: PublicKey
  /** {@link NONCE_BYTES} random bytes, good for one response. */
  readonly nonce: Uint8Array
}

export interface ProofResponse {
  readonly nonce: Uint8Array
  readonly signature: Uint8Array
}

export interface ProofAccept {
  readonly signature: Uint8Array
}

export const NONCE_BYTES = 32

/** Challenges a session may have open; the oldest is dropped for a new one. */
const MAX_OPEN = 8

const HOLDER_CONTEXT = Buffer.from('cloudapp proof holder v1\0')
const BROKER_CONTEXT = Buffer.from('cloudapp proof broker v1\0')

interface Transcript {
  readonly broker: PublicKey
  readonly holder: PublicKey
  readonly brokerNonce: Uint8Array
  readonly holderNonce: Uint8Array
  readonly binding: TransportBinding
  readonly tokenHash: Uint8Array
}

// Every part has a fixed length, so that the parts can not be shifted against each other.
function transcriptBytes(transcript: Transcript): Buffer {
  return Buffer.concat([
    publicKeyBytes(transcript.broker),
    publicKeyBytes(transcript.holder),
    transcript.brokerNonce,
    transcript.holderNonce,
    bindingHash(transcript.binding),
    transcript.tokenHash,
  ])
}

function holderMessage(transcript: Buffer): Buffer {
  return Buffer.concat([HOLDER_CONTEXT, transcript])
}

function brokerMessage(transcript: Buffer, holderSignature: Uint8Array): Buffer {
  return Buffer.concat([BROKER_CONTEXT, transcript, holderSignature])
}

/** The broker's side of one session. */
export class ProofVerifier {
  readonly #key: KeyPair
  readonly #binding: TransportBinding
  readonly #open = new Map<string, Uint8Array>()

  /** `binding` is the channel as the broker sees it, from the transport and never from the peer. */
  constructor(key: KeyPair, binding: TransportBinding) {
    this.#key = key
    this.#binding = binding
  }

  /** A new challenge. */
  challenge(): ProofHello {
    const nonce = randomBytes(NONCE_BYTES)
    const oldest = this.#open.keys().next()
    if (this.#open.size >= MAX_OPEN && oldest.done !== true) this.#open.delete(oldest.value)
    this.#open.set(nonce.toString('hex'), nonce)
    return { broker: this.#key.publicKey, nonce }
  }

  /**
   * Checks the answer to `hello`. A challenge is spent by the first answer, right or wrong.
   *
   * @param token the verified token: its holder and its hash
   * @returns what lets the holder check the broker
   * @throws CloudAppError `ERR_CLOUDAPP_PROOF`
   */
  verify(
    hello: Pick<ProofHello, 'nonce'>,
    response: ProofResponse,
    token: { readonly holder: PublicKey; readonly hash: Uint8Array },
  ): ProofAccept {
    const name = isNonce(hello?.nonce) ? Buffer.from(hello.nonce).toString('hex') : ''
    const brokerNonce = this.#open.get(name)
    this.#open.delete(name)
    if (brokerNonce === undefined) throw proofError('the challenge is unknown here or was answered before')
    if (!isNonce(response?.nonce)) throw proofError(`a nonce has ${NONCE_BYTES} bytes`)
    const transcript = transcriptBytes({
      broker: this.#key.publicKey,
      holder: token.holder,
      brokerNonce,
      holderNonce: response.nonce,
      binding: this.#binding,
      tokenHash: token.hash,
    })
    const { signature } = response
    if (!(signature instanceof Uint8Array) || !verifySignature(token.holder, holderMessage(transcript), signature)) {
      throw proofError("the proof is not by the token's holder for this channel, broker and token")
    }
    return { signature: this.#key.sign(brokerMessage(transcript, signature)) }
  }
}

/** The holder's side, for one token on one channel. */
export class ProofResponder {
  readonly #key: KeyPair
  readonly #binding: TransportBinding
  readonly #broker: PublicKey
  readonly #tokenHash: Uint8Array
  #sent: { readonly transcript: Buffer; readonly signature: Uint8Array } | undefined

  /**
   * @param options.broker the broker the token is for (its audience): no other is answered
   * @param options.binding the channel as the holder sees it
   */
  constructor(options: {
    readonly key: KeyPair
    readonly token: Uint8Array
    readonly broker: PublicKey
    readonly binding: TransportBinding
  }) {
    this.#key = options.key
    this.#binding = options.binding
    this.#broker = options.broker
    this.#tokenHash = tokenHash(options.token)
  }

  /** Answers a challenge, once. @throws CloudAppError `ERR_CLOUDAPP_PROOF` */
  respond(hello: ProofHello): ProofResponse {
    if (this.#sent !== undefined) throw proofError('this side has answered a challenge already')
    if (hello?.broker !== this.#broker) throw proofError('the peer does not name itself as the broker the token is for')
    if (!isNonce(hello.nonce)) throw proofError(`a nonce has ${NONCE_BYTES} bytes`)
    const nonce = randomBytes(NONCE_BYTES)
    const transcript = transcriptBytes({
      broker: this.#broker,
      holder: this.#key.publicKey,
      brokerNonce: hello.nonce,
      holderNonce: nonce,
      binding: this.#binding,
      tokenHash: this.#tokenHash,
    })
    const signature = this.#key.sign(holderMessage(transcript))
    this.#sent = { transcript, signature }
    return { nonce, signature }
  }

  /** Checks that the peer has the broker's key. @throws CloudAppError `ERR_CLOUDAPP_PROOF` */
  verify(accept: ProofAccept): void {
    const sent = this.#sent
    if (sent === undefined) throw proofError('nothing was answered yet')
    const { signature } = accept ?? {}
    const message = brokerMessage(sent.transcript, sent.signature)
    if (!(signature instanceof Uint8Array) || !verifySignature(this.#broker, message, signature)) {
      throw proofError('the peer does not hold the key of the broker the token is for')
    }
  }
}

function isNonce(value: unknown): value is Uint8Array {
  return value instanceof Uint8Array && value.length === NONCE_BYTES
}

function proofError(message: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_PROOF', message)
}
