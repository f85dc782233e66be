import { createHash } from 'node:crypto'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import type { ClientLink } from './client-link.js'
import { ANSWERS, answer } from './interface/protocol.js'

/** The bytes of an artifact, a part after the other, checked at the end. */
export async function* readArtifact(
  link: ClientLink,
  finding: string,
  digest: string,
  options: { readonly signal?: AbortSignal },
): AsyncGenerator<Uint8Array, undefined> {
  checkOptions('artifacts.read', options, ['signal'])
  const hash = createHash('sha256')
  for (let at = 0, total = 1; at < total; ) {
    const wire = await link.call((service) => service.artifacts.read({ finding, digest, at }), options.signal)
    const part = answer('artifacts.read', ANSWERS.artifact, wire)
    // An empty answer would be asked for without end, and a total that grows could go on for ever.
    if ((at > 0 && part.total !== total) || at + part.bytes.length > part.total) throw lied('changed while it was read')
    if (part.bytes.length === 0 && at < part.total) throw lied('ends before its end')
    total = part.total
    at += part.bytes.length
    hash.update(part.bytes)
    if (part.bytes.length > 0) yield part.bytes
  }
  if (`sha256:${hash.digest('hex')}` !== digest) throw lied('is not what its digest says')
}

function lied(what: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `The artifact that the service domain sent ${what}`)
}
