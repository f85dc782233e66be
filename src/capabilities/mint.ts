import { randomBytes } from 'node:crypto'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import { BLOCK_ID_BYTES, type BlockContent, checkNarrowing, encodeBlock, ROOT_LINK, signedBytes } from './block.js'
import { type Caveats, TOKEN_LIMITS, type VmRef } from './caveats.js'
import { CAVEAT_NAMES } from './dimensions.js'
import { type KeyPair, type PublicKey, parsePublicKey } from './keys.js'
import { parseRights, type Right } from './rights.js'
import { type Moment, momentAfter } from './time.js'
import { encodeToken } from './token.js'

/** How far before `now` a token is valid if nothing is said: two machines' clocks differ. */
const SKEW_MS = 60_000

/** What {@link mintToken} writes into a root block. Every caveat may be given; see {@link Caveats}. */
export interface MintOptions extends Omit<Caveats, 'notBefore' | 'expires' | 'audience'> {
  /** The VM's owner in the host's register: signs the root block. */
  readonly owner: KeyPair
  readonly vm: VmRef
  /** Whom the rights are given to. */
  readonly holder: PublicKey
  readonly rights: readonly Right[]
  /** The broker that shall honour it. */
  readonly audience: PublicKey
  readonly expires: Moment
  /** A minute before now if absent. */
  readonly notBefore?: Moment
  /** Milliseconds since 1970 UTC that durations count from; the system clock's if absent. */
  readonly now?: number
}

const KNOWN = ['owner', 'vm', 'holder', 'rights', 'now', ...CAVEAT_NAMES]

/**
 * Makes a token: one root block, signed by the VM's owner.
 *
 * @returns the token's bytes; {@link tokenToText} gives its text.
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT`, `ERR_CLOUDAPP_UNKNOWN_OPTION`
 */
export function mintToken(options: MintOptions): Uint8Array {
  checkOptions('mintToken', options, KNOWN)
  const { owner, vm, holder, rights, audience, now = Date.now(), expires, notBefore, ...caveats } = options
  const narrowing = {
    ...caveats,
    audience,
    rights: parseRights(rights),
    notBefore: notBefore === undefined ? Math.max(0, now - SKEW_MS) : momentAfter(notBefore, now, 'notBefore'),
    expires: momentAfter(expires, now, 'expires'),
  }
  if (narrowing.expires <= narrowing.notBefore) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'expires must be after notBefore')
  }
  checkVm(vm)
  checkNarrowing(narrowing)
  const content: BlockContent = {
    id: newBlockId(),
    holder: parsePublicKey(holder),
    narrowing,
    issuer: owner.publicKey,
    vm,
  }
  const payload = encodeBlock(content)
  return bounded(encodeToken([{ payload, signature: owner.sign(signedBytes(ROOT_LINK, payload)) }]))
}

export function newBlockId(): string {
  return randomBytes(BLOCK_ID_BYTES).toString('hex')
}

/** @throws CloudAppError `ERR_CLOUDAPP_LIMIT` */
export function bounded(token: Uint8Array): Uint8Array {
  if (token.length <= TOKEN_LIMITS.bytes) return token
  throw new CloudAppError(
    'ERR_CLOUDAPP_LIMIT',
    `the token would have ${token.length} bytes, past ${TOKEN_LIMITS.bytes}`,
    {
      details: { limit: TOKEN_LIMITS.bytes, bytes: token.length },
    },
  )
}

/** @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` unless uuid and boot nonce are in their one text form. */
export function checkVm(vm: VmRef): void {
  if (!/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(vm?.uuid)) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', "a VM's uuid is 36 lower-case letters, as in RFC 9562")
  }
  if (!/^[0-9a-f]{32}$/.test(vm.bootNonce)) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', "a VM's boot nonce is 32 lower-case hexadecimal digits")
  }
}
