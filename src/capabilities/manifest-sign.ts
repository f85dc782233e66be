import { CloudAppError } from '../errors.js'
import { type KeyPair, type PublicKey, publicKeyBytes, verifySignature } from './keys.js'
import { type Manifest, parseManifest } from './manifest.js'
import { RIGHTS } from './rights.js'
import { encodeStrict } from './strict-cbor.js'

// Words of its own, so that no signature of ours means two things.
const CONTEXT = Buffer.from('cloudapp manifest v1\0')

/** Why a manifest's signature does not count: `details.reason` of the error. */
export type ManifestFault = 'unsigned' | 'publisher' | 'signature'

/**
 * The bytes a manifest's signature is over: the context `cloudapp manifest v1` and a zero byte, then deterministic CBOR
 * (RFC 8949, 4.2.1) of a map: 1 format, 2 name, 3 title, 4 version, 5 vendor, 6 publisher (32 bytes), 7 description, 8
 * image digest (32 bytes), 9 rights (array of [code, reason, 1 if optional else 0]), 10 publishes. What is absent has no
 * entry. White space and the order of fields in the file do not matter; the order of rights and publications does.
 */
export function manifestBytes(manifest: Manifest): Uint8Array {
  const { publisher, description, image } = manifest
  const map = new Map<number, unknown>([
    [1, manifest.cloudapp],
    [2, manifest.name],
    [3, manifest.title],
    [4, manifest.version],
    [5, manifest.vendor],
  ])
  if (publisher !== undefined) map.set(6, publicKeyBytes(publisher))
  if (description !== undefined) map.set(7, description)
  if (image !== undefined) map.set(8, Buffer.from(image.slice('sha256:'.length), 'hex'))
  map.set(
    9,
    manifest.rights.map(({ right, reason, optional }) => [RIGHTS[right].code, reason, optional === true ? 1 : 0]),
  )
  map.set(10, manifest.publishes)
  return Buffer.concat([CONTEXT, encodeStrict(map)])
}

/** The manifest with its publisher's key and signature in it. */
export function signManifest(manifest: Manifest, publisher: KeyPair): Manifest {
  const { signature: _, ...bare } = parseManifest(manifest)
  const unsigned = { ...bare, publisher: publisher.publicKey }
  const signature = Buffer.from(publisher.sign(manifestBytes(unsigned))).toString('base64url')
  return { ...unsigned, signature }
}

/**
 * Checks a manifest and its signature. Who the publisher is, the manifest itself says: give `publisher` where it is known.
 *
 * @returns the publisher
 * @throws CloudAppError `ERR_CLOUDAPP_PROOF` (`details.reason`, {@link ManifestFault})
 */
export function verifyManifest(manifest: Manifest, options: { readonly publisher?: PublicKey } = {}): PublicKey {
  const { publisher, signature } = manifest
  if (signature === undefined || publisher === undefined) {
    throw fault('unsigned', `names no ${publisher === undefined ? 'publisher' : 'signature'}: nobody stands for it`)
  }
  if (options.publisher !== undefined && options.publisher !== publisher) {
    throw fault('publisher', `is by ${publisher}, not by ${options.publisher}`)
  }
  if (!verifySignature(publisher, manifestBytes(manifest), Buffer.from(signature, 'base64url'))) {
    throw fault('signature', 'was changed after it was signed, or was signed by another key')
  }
  return publisher
}

function fault(reason: ManifestFault, what: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_PROOF', `The manifest ${what}`, { details: { reason } })
}
