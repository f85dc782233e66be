import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import { nextLink, ROOT_LINK, signedBytes } from './block.js'
import type { Grant, Narrowing, TransportName, VmRef } from './caveats.js'
import { grantOf } from './grant.js'
import { type PublicKey, verifySignature } from './keys.js'
import { isoTime } from './time.js'
import { type ParsedToken, parseToken, tokenError, tokenHash } from './token.js'

/** A block of a verified chain. Operations are debited on each one's own limits. */
export interface VerifiedBlock {
  /** 32 hexadecimal digits; what is revoked. */
  readonly id: string
  /** Who signed it: the owner for the root. */
  readonly signer: PublicKey
  readonly holder: PublicKey
  /** What this block itself says; a limit in it counts for everything derived from the block. */
  readonly narrowing: Narrowing
}

/** A chain whose every signature was checked, for this broker and this moment. */
export interface VerifiedToken {
  /** The owner, who signed the root. */
  readonly issuer: PublicKey
  /** Who must prove possession. */
  readonly holder: PublicKey
  readonly grant: Grant
  /** Root first. */
  readonly blocks: readonly VerifiedBlock[]
  /** The blocks' ids, root first. */
  readonly ids: readonly string[]
  /** SHA-256 of the token, 32 bytes: what the proof of possession signs. */
  readonly hash: Uint8Array
}

/** What the host's register says of a VM. */
export interface Ownership {
  readonly owner: PublicKey
  /** Of the boot that is running now. */
  readonly bootNonce: string
}

export interface VerifyOptions {
  /** The verifying broker's own key. */
  readonly broker: PublicKey
  /** The host's register; undefined for a VM it does not know. */
  readonly ownerOf: (uuid: string) => Ownership | undefined
  /** Milliseconds since 1970 UTC, from a clock that never goes back (`openClock`). */
  readonly now: number
  /** True for a revoked block, by its id. */
  readonly revoked: (blockId: string) => boolean
  /** What the token came on; a token bound to transports is refused without it. */
  readonly transport?: TransportName
}

/**
 * Verifies a chain. Total and bounded: whatever the bytes, the outcome is a result or a CloudAppError, after at most one
 * signature check a block. Cheap checks come first; time and revocation come after the signatures, so that a forger
 * learns nothing of them. Possession is not proven here (see proof.ts).
 *
 * @throws CloudAppError `ERR_CLOUDAPP_TOKEN` (`details.reason`, see {@link TokenFault}), `ERR_CLOUDAPP_EXPIRED`,
 *   `ERR_CLOUDAPP_REVOKED` (`details.block` is the id of the revoked block).
 */
export function verifyToken(token: Uint8Array, options: VerifyOptions): VerifiedToken {
  const steps = verifyTokenSteps(token, options)
  for (;;) {
    const { done, value } = steps.next()
    if (done === true) return value
  }
}

/**
 * The same in steps of one signature, for who has others waiting: a chain of sixteen blocks takes milliseconds.
 *
 * @throws CloudAppError as {@link verifyToken}
 */
export function* verifyTokenSteps(token: Uint8Array, options: VerifyOptions): Generator<void, VerifiedToken> {
  checkOptions('verifyToken', options, ['broker', 'ownerOf', 'now', 'revoked', 'transport'])
  const parsed = parseToken(token)
  const grant = grantOf(parsed.blocks)
  const issuer = checkPlace(parsed, grant, options)
  const blocks = yield* checkSignatures(parsed, issuer)
  const ids = blocks.map(({ id }) => id)
  checkLife(grant, ids, options)
  const holder = (blocks[blocks.length - 1] as VerifiedBlock).holder
  return { issuer, holder, grant, blocks, ids, hash: tokenHash(token) }
}

/** Checks a live token again, without signatures: its time, its revocation, its VM's boot. @throws as verifyToken */
export function recheckToken(token: VerifiedToken, options: Omit<VerifyOptions, 'transport' | 'broker'>): void {
  checkVmOwner(token.grant.vm, token.issuer, options.ownerOf)
  checkLife(token.grant, token.ids, options)
}

function checkPlace({ blocks }: ParsedToken, grant: Grant, options: VerifyOptions): PublicKey {
  if (grant.audience !== options.broker) {
    throw tokenError('audience', `the token is for the broker ${grant.audience}, not for this one`)
  }
  const { transports } = grant
  if (transports !== undefined && (options.transport === undefined || !transports.includes(options.transport))) {
    const came = options.transport ?? 'an unnamed transport'
    throw tokenError('transport', `the token may arrive on ${transports.join(', ') || 'no transport'}, not on ${came}`)
  }
  const issuer = blocks[0]?.issuer
  if (issuer === undefined) throw tokenError('malformed', 'a root block names its issuer', 0)
  checkVmOwner(grant.vm, issuer, options.ownerOf)
  return issuer
}

function checkVmOwner(vm: VmRef, issuer: PublicKey, ownerOf: VerifyOptions['ownerOf']): void {
  const known = ownerOf(vm.uuid)
  if (known === undefined) throw tokenError('vm', `the VM ${vm.uuid} is not on this host`, 0)
  if (known.owner !== issuer) throw tokenError('owner', `the token is not signed by the owner of ${vm.uuid}`, 0)
  if (known.bootNonce !== vm.bootNonce) {
    throw tokenError('vm', `the token is for an earlier start of ${vm.uuid}, which has been restarted since`, 0)
  }
}

function* checkSignatures({ signed, blocks }: ParsedToken, issuer: PublicKey): Generator<void, VerifiedBlock[]> {
  let link = ROOT_LINK
  let signer = issuer
  const checked: VerifiedBlock[] = []
  for (const [i, block] of signed.entries()) {
    yield
    if (!verifySignature(signer, signedBytes(link, block.payload), block.signature)) {
      throw tokenError('signature', `block ${i} is not signed by ${i === 0 ? 'the issuer' : 'the holder before it'}`, i)
    }
    const content = blocks[i] as (typeof blocks)[number]
    checked.push({ id: content.id, signer, holder: content.holder, narrowing: content.narrowing })
    link = nextLink(link, block)
    signer = content.holder
  }
  return checked
}

function checkLife(
  grant: Grant,
  ids: readonly string[],
  { now, revoked }: Pick<VerifyOptions, 'now' | 'revoked'>,
): void {
  const vm = grant.vm.uuid
  const dead = ids.find((id) => revoked(id))
  if (dead !== undefined) {
    throw new CloudAppError('ERR_CLOUDAPP_REVOKED', 'the capability was revoked', { vm, details: { block: dead } })
  }
  // Written so that a `now` that is no number refuses.
  if (!(now < grant.expires)) {
    const at = isoTime(grant.expires)
    throw new CloudAppError('ERR_CLOUDAPP_EXPIRED', `the capability expired at ${at}`, { vm, details: { expires: at } })
  }
  if (!(now >= grant.notBefore)) {
    throw tokenError('not-yet-valid', `the token is not valid before ${isoTime(grant.notBefore)}`)
  }
}
