import { createHash } from 'node:crypto'
import { CloudAppError } from '../errors.js'
import { type BlockContent, decodeBlock, decodeSigned, type SignedBlock } from './block.js'
import { TOKEN_LIMITS } from './caveats.js'
import { Malformed } from './dimensions.js'
import { decodeStrict, encodeStrict } from './strict-cbor.js'

/** A token as text: `cloudapp1.` and its bytes in base64url without padding. */
export type TokenText = `cloudapp1.${string}`

/** Why a token is not honoured, in `details.reason` of the error. */
export type TokenFault =
  /** Not a token: wrong bytes, bounds passed, an unknown right or caveat. */
  | 'malformed'
  /** A block appended more than the blocks before it allow. */
  | 'widening'
  /** A block is not signed by the key the block before named. */
  | 'signature'
  /** The root is not signed by the VM's owner. */
  | 'owner'
  /** The VM is unknown here, or has been started anew since. */
  | 'vm'
  /** For another broker. */
  | 'audience'
  /** Not for the transport it came on. */
  | 'transport'
  /** Its time has not come. */
  | 'not-yet-valid'

const VERSION = 1
const PREFIX = 'cloudapp1.'
// Base64 takes four letters for three bytes.
const MAX_TEXT = PREFIX.length + Math.ceil((TOKEN_LIMITS.bytes * 4) / 3)

/** A chain that has the form of a token; nothing in it is proven yet. */
export interface ParsedToken {
  readonly signed: readonly SignedBlock[]
  readonly blocks: readonly BlockContent[]
}

/** The bytes of a chain. */
export function encodeToken(blocks: readonly SignedBlock[]): Uint8Array {
  return encodeStrict([VERSION, ...blocks.map(({ payload, signature }) => [payload, signature])])
}

/** Reads the form of a token. Bounded in time and memory by its length. @throws CloudAppError `ERR_CLOUDAPP_TOKEN` */
export function parseToken(bytes: Uint8Array): ParsedToken {
  if (!(bytes instanceof Uint8Array)) throw tokenError('malformed', 'a token must be bytes')
  if (bytes.length > TOKEN_LIMITS.bytes) {
    throw tokenError('malformed', `a token has at most ${TOKEN_LIMITS.bytes} bytes, this has ${bytes.length}`)
  }
  let index = -1
  try {
    const outer = decodeStrict(bytes)
    if (!Array.isArray(outer) || outer[0] !== VERSION) throw new Malformed(`not a token of version ${VERSION}`)
    if (outer.length < 2) throw new Malformed('a chain without blocks')
    if (outer.length > TOKEN_LIMITS.blocks + 1) throw new Malformed(`more than ${TOKEN_LIMITS.blocks} blocks`)
    const signed: SignedBlock[] = []
    const blocks: BlockContent[] = []
    const seen = new Set<string>()
    for (index = 0; index < outer.length - 1; index++) {
      const block = decodeSigned(outer[index + 1])
      const content = decodeBlock(block.payload, index === 0)
      if (seen.has(content.id)) throw new Malformed('a block id used twice')
      seen.add(content.id)
      signed.push(block)
      blocks.push(content)
    }
    return { signed, blocks }
  } catch (cause) {
    if (!(cause instanceof Malformed)) throw cause
    const where = index < 0 ? '' : ` in block ${index}`
    throw tokenError('malformed', `malformed token: ${cause.message}${where}`, index, cause)
  }
}

/** Text form, for files and command lines. */
export function tokenToText(bytes: Uint8Array): TokenText {
  return `${PREFIX}${Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('base64url')}`
}

/** The bytes of a token text; blanks around it are allowed. @throws CloudAppError `ERR_CLOUDAPP_TOKEN` */
export function tokenFromText(text: string): Uint8Array {
  const plain = typeof text === 'string' && text.length <= MAX_TEXT + 64 ? text.trim() : ''
  if (!plain.startsWith(PREFIX) || plain.length > MAX_TEXT) {
    throw tokenError('malformed', `a token text starts with ${PREFIX} and has at most ${MAX_TEXT} letters`)
  }
  const body = plain.slice(PREFIX.length)
  const bytes = Buffer.from(body, 'base64url')
  // Buffer passes over letters it does not know; one token must have one text.
  if (bytes.toString('base64url') !== body) throw tokenError('malformed', 'a token text is base64url without padding')
  return bytes
}

/** What names this exact chain: SHA-256 of its bytes. */
export function tokenHash(bytes: Uint8Array): Uint8Array {
  return createHash('sha256').update(bytes).digest()
}

/** The error for a token that is not honoured. `block` is the index of the block at fault, if it is one. */
export function tokenError(reason: TokenFault, message: string, block = -1, cause?: unknown): CloudAppError {
  const details = block < 0 ? { reason } : { reason, block }
  return new CloudAppError('ERR_CLOUDAPP_TOKEN', message, { details, ...(cause === undefined ? {} : { cause }) })
}
