import { createHash } from 'node:crypto'
import { CloudAppError } from '../errors.js'
import { Malformed } from './dimensions.js'
import {
  type KeyPair,
  PUBLIC_KEY_BYTES,
  type PublicKey,
  publicKeyBytes,
  publicKeyFromBytes,
  SIGNATURE_BYTES,
  verifySignature,
} from './keys.js'
import { decodeStrict, encodeStrict } from './strict-cbor.js'
import { type Moment, momentAfter } from './time.js'

/** A pass as text: `cloudapp-pass1.` and its bytes in base64url without padding. */
export type PassText = `cloudapp-pass1.${string}`

/** What a pass says once it is checked. */
export interface Pass {
  /** Who signed it: a customer, whose VMs' findings the bearer may see. */
  readonly customer: PublicKey
  /** Milliseconds since 1970, UTC. */
  readonly expires: number
  /** It is good on one channel only: its bearer holds the key. */
  readonly bound: boolean
}

const PREFIX = 'cloudapp-pass1.'
const CONTEXT = Buffer.from('cloudapp pass v1\0')
const CHANNEL_CONTEXT = Buffer.from('cloudapp pass channel v1\0')
/** Characters; the longest pass has fewer. */
const MAX_TEXT = 400
/** A pass can not be taken back: it is good for a year at most. */
const LONGEST = 366 * 86_400_000

/**
 * A customer's word to a service domain: who bears it may see, and acknowledge, findings about the customer's VMs. Signed
 * with the key that owns the VMs; good at one service domain, until it expires. It gives no right over a VM.
 *
 * With `channel` (the binding of a {@link Channel}) it proves that the key is held at the other end of this very channel;
 * without, it is a bearer credential: keep it as secret as a password.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` for a time past, or more than 366 days ahead.
 */
export function makePass(
  customer: KeyPair,
  options: { readonly service: PublicKey; readonly expires: Moment; readonly channel?: Uint8Array },
): PassText {
  const now = Date.now()
  const expires = momentAfter(options.expires, now, 'expires')
  if (expires <= now || expires - now > LONGEST) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'A pass expires after now, and within 366 days')
  }
  const map = new Map<number, unknown>([
    [1, publicKeyBytes(customer.publicKey)],
    [2, publicKeyBytes(options.service)],
    [3, expires],
  ])
  if (options.channel !== undefined) map.set(4, channelHash(options.channel))
  const payload = encodeStrict(map)
  const signature = customer.sign(Buffer.concat([CONTEXT, payload]))
  return `${PREFIX}${Buffer.from(encodeStrict([payload, signature])).toString('base64url')}`
}

/**
 * Checks a pass: its form, its signature, that it is for this service domain and channel, and its time.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_PROOF`, or `ERR_CLOUDAPP_EXPIRED`
 */
export function verifyPass(
  text: string,
  options: { readonly service: PublicKey; readonly channel?: Uint8Array; readonly now?: number },
): Pass {
  const { customer, service, expires, channel, payload, signature } = parse(text)
  if (!verifySignature(customer, Buffer.concat([CONTEXT, payload]), signature)) {
    throw refused('is not signed by the key it names')
  }
  if (service !== options.service) throw refused('is for another service domain')
  const own = options.channel && channelHash(options.channel)
  if (channel && !(own && Buffer.compare(channel, own) === 0)) throw refused('is for another channel')
  const now = options.now ?? Date.now()
  if (expires <= now) throw new CloudAppError('ERR_CLOUDAPP_EXPIRED', 'The pass is past its time')
  if (expires - now > LONGEST) throw refused('is for more than 366 days')
  return { customer, expires, bound: channel !== undefined }
}

function parse(text: string) {
  const body = typeof text === 'string' && text.length <= MAX_TEXT && text.startsWith(PREFIX) ? text.slice(15) : ''
  const bytes = Buffer.from(body, 'base64url')
  if (bytes.length === 0 || bytes.toString('base64url') !== body) throw refused(`is no text that starts with ${PREFIX}`)
  try {
    const outer = decodeStrict(bytes)
    if (!Array.isArray(outer) || outer.length !== 2) throw new Malformed('no pair of payload and signature')
    const payload = blob(outer[0])
    const map = decodeStrict(payload)
    if (!(map instanceof Map)) throw new Malformed('the payload is no map')
    const expires: unknown = map.get(3)
    if (!Number.isSafeInteger(expires)) throw new Malformed('a wrong time')
    const channel = map.has(4) ? blob(map.get(4), 32) : undefined
    if (map.size !== (channel ? 4 : 3)) throw new Malformed('an unknown entry')
    return {
      customer: publicKeyFromBytes(blob(map.get(1), PUBLIC_KEY_BYTES)),
      service: publicKeyFromBytes(blob(map.get(2), PUBLIC_KEY_BYTES)),
      expires: expires as number,
      channel,
      payload,
      signature: blob(outer[1], SIGNATURE_BYTES),
    }
  } catch (cause) {
    if (!(cause instanceof Malformed)) throw cause
    throw refused(`is malformed: ${cause.message}`, cause)
  }
}

function blob(value: unknown, length?: number): Uint8Array {
  if (value instanceof Uint8Array && (length === undefined || value.length === length)) return value
  throw new Malformed('bytes of a wrong length')
}

function channelHash(binding: Uint8Array): Uint8Array {
  return createHash('sha256').update(CHANNEL_CONTEXT).update(binding).digest()
}

function refused(why: string, cause?: unknown): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_PROOF', `The pass ${why}`, cause === undefined ? {} : { cause })
}
