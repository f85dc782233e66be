import { CloudAppError } from '../errors.js'

/** A key as TLS needs it: what `KeyPair` has. */
export interface TlsKey {
  /** `ed25519:` and 32 bytes in base64url. */
  readonly publicKey: string
  sign(message: Uint8Array): Uint8Array
  /** The private key in PEM (PKCS #8), for the TLS library of this process. */
  exportPem(): string
}

const PREFIX = 'ed25519:'

/** AlgorithmIdentifier of Ed25519, without parameters: RFC 8410, 3. */
const ED25519 = Buffer.from('300506032b6570', 'hex')

/** `[0] { INTEGER 2 }`, version 3 (RFC 5280, 4.1.2.1), then serial number 1. */
const VERSION_AND_SERIAL = Buffer.from('a003020102020101', 'hex')

/** id-at-commonName: RFC 5280, appendix A.1. */
const COMMON_NAME = Buffer.from('0603550403', 'hex')

/**
 * A self-signed certificate around a bare key (RFC 5280), in PEM. It says nothing but the key: both ends compare that and
 * look at no name, no date and no chain; TLS 1.3 itself proves that the peer has the private half. It is valid for ever
 * (RFC 5280, 4.1.2.5), so that it is the same for the same key.
 */
export function certificateOf(key: TlsKey): string {
  const raw = rawKey(key.publicKey)
  const name = der(0x30, der(0x31, der(0x30, COMMON_NAME, der(0x0c, Buffer.from('cloudapp')))))
  // UTCTime up to 2049, GeneralizedTime after.
  const validity = der(0x30, der(0x17, Buffer.from('700101000000Z')), der(0x18, Buffer.from('99991231235959Z')))
  const publicKey = der(0x30, ED25519, bits(raw))
  const content = der(0x30, VERSION_AND_SERIAL, ED25519, name, validity, name, publicKey)
  const certificate = der(0x30, content, ED25519, bits(key.sign(content)))
  return `-----BEGIN CERTIFICATE-----\n${certificate.toString('base64')}\n-----END CERTIFICATE-----\n`
}

/** The 32 bytes of a key's text. @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` */
function rawKey(text: string): Buffer {
  const raw = Buffer.from(text.slice(PREFIX.length), 'base64url')
  if (text.startsWith(PREFIX) && raw.length === 32) return raw
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'TLS needs an Ed25519 key')
}

/** A tag, a length (X.690, 8.1.3) and what is in it; nothing here is longer than 65,535 bytes. */
function der(tag: number, ...parts: readonly Uint8Array[]): Buffer {
  const content = Buffer.concat(parts)
  const { length } = content
  const head =
    length < 0x80 ? [tag, length] : length < 0x100 ? [tag, 0x81, length] : [tag, 0x82, length >> 8, length & 0xff]
  return Buffer.concat([Buffer.from(head), content])
}

/** A BIT STRING of whole bytes. */
function bits(bytes: Uint8Array): Buffer {
  return der(0x03, Buffer.from([0]), bytes)
}
