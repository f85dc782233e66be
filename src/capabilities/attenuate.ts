import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import { checkNarrowing, encodeBlock, nextLink, ROOT_LINK, signedBytes } from './block.js'
import { type Caveats, TOKEN_LIMITS } from './caveats.js'
import { CAVEAT_NAMES } from './dimensions.js'
import { grantOf, wideningError } from './grant.js'
import { type KeyPair, type PublicKey, parsePublicKey } from './keys.js'
import { bounded, newBlockId } from './mint.js'
import { findWidening } from './narrow.js'
import { parseRights, type Right } from './rights.js'
import { type Moment, momentAfter } from './time.js'
import { encodeToken, parseToken, tokenError } from './token.js'

/** What {@link attenuateToken} appends. What is left out stays as the chain has it. */
export interface AttenuateOptions extends Omit<Caveats, 'notBefore' | 'expires'> {
  /** The present holder: signs the block. */
  readonly holder: KeyPair
  /** The holder from here on; the present one if absent. */
  readonly to?: PublicKey
  readonly rights?: readonly Right[]
  readonly notBefore?: Moment
  readonly expires?: Moment
  /** Milliseconds since 1970 UTC that durations count from; the system clock's if absent. */
  readonly now?: number
}

const KNOWN = ['holder', 'to', 'rights', 'now', ...CAVEAT_NAMES]

/**
 * Appends a block that narrows. Nobody but the holder can, and no block can widen: what the chain does not allow is
 * refused here, and again by every broker.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_TOKEN` (`details.reason` is `widening`, with the dimension, or `signature` if
 *   `holder` is not the holder), `ERR_CLOUDAPP_INVALID_ARGUMENT`, `ERR_CLOUDAPP_LIMIT` for a chain that is full.
 */
export function attenuateToken(token: Uint8Array, options: AttenuateOptions): Uint8Array {
  checkOptions('attenuateToken', options, KNOWN)
  const { holder, to = holder.publicKey, rights, notBefore, expires, now = Date.now(), ...caveats } = options
  const { signed, blocks } = parseToken(token)
  if (blocks.length >= TOKEN_LIMITS.blocks) {
    throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `a chain has at most ${TOKEN_LIMITS.blocks} blocks`, {
      details: { limit: TOKEN_LIMITS.blocks },
    })
  }
  if (blocks.at(-1)?.holder !== holder.publicKey) {
    throw tokenError('signature', 'only the holder can append a block, and this key is not the holder', blocks.length)
  }
  const narrowing = {
    ...caveats,
    ...(rights === undefined ? {} : { rights: parseRights(rights) }),
    ...(notBefore === undefined ? {} : { notBefore: momentAfter(notBefore, now, 'notBefore') }),
    ...(expires === undefined ? {} : { expires: momentAfter(expires, now, 'expires') }),
  }
  checkNarrowing(narrowing)
  const widening = findWidening(grantOf(blocks), narrowing)
  if (widening !== undefined) throw wideningError(widening, blocks.length)
  const payload = encodeBlock({ id: newBlockId(), holder: parsePublicKey(to), narrowing })
  const link = signed.reduce<Uint8Array>(nextLink, ROOT_LINK)
  return bounded(encodeToken([...signed, { payload, signature: holder.sign(signedBytes(link, payload)) }]))
}
