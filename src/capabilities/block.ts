import { createHash } from 'node:crypto'
import { CloudAppError } from '../errors.js'
import type { Caveats, Narrowing, VmRef } from './caveats.js'
import { CAVEAT_NAMES, type CaveatName, DIMENSIONS, type Dimension, Malformed } from './dimensions.js'
import { PUBLIC_KEY_BYTES, type PublicKey, publicKeyBytes, publicKeyFromBytes, SIGNATURE_BYTES } from './keys.js'
import { ALL_RIGHTS, RIGHTS, type Right, rightOfCode } from './rights.js'
import { decodeStrict, encodeStrict } from './strict-cbor.js'

/** Bytes of a block id: random, so that nobody names a block they have not seen. */
export const BLOCK_ID_BYTES = 16

/** What a block says. `issuer` and `vm` are the root's alone. */
export interface BlockContent {
  /** 32 hexadecimal digits. */
  readonly id: string
  /** Who holds the token from here on: signs the next block, and proves possession. */
  readonly holder: PublicKey
  readonly narrowing: Narrowing
  readonly issuer?: PublicKey
  readonly vm?: VmRef
}

/** A block as it is carried. */
export interface SignedBlock {
  readonly payload: Uint8Array
  readonly signature: Uint8Array
}

// What is signed and what is hashed start with words of their own, so that no signature of ours means two things.
const SIGN_CONTEXT = Buffer.from('cloudapp token block v1\0')
const LINK_CONTEXT = Buffer.from('cloudapp token link v1\0')

/** What stands before the root: 32 zero bytes. */
export const ROOT_LINK: Uint8Array = new Uint8Array(32)

/** The bytes a block's signature is over: context, the link to all that came before, the payload. */
export function signedBytes(link: Uint8Array, payload: Uint8Array): Uint8Array {
  return Buffer.concat([SIGN_CONTEXT, link, payload])
}

/** The link the next block signs: a hash over everything up to and with this block, signature included. */
export function nextLink(link: Uint8Array, block: SignedBlock): Uint8Array {
  return createHash('sha256').update(LINK_CONTEXT).update(link).update(block.signature).update(block.payload).digest()
}

export function encodeBlock(content: BlockContent): Uint8Array {
  const { narrowing } = content
  const out = new Map<number, unknown>([
    [1, Buffer.from(content.id, 'hex')],
    [2, publicKeyBytes(content.holder)],
  ])
  if (narrowing.rights !== undefined) {
    const held = new Set(narrowing.rights)
    const codes = ALL_RIGHTS.filter((right) => held.has(right)).map((right) => RIGHTS[right].code)
    out.set(3, codes)
  }
  const caveats = encodeCaveats(narrowing)
  if (caveats.size > 0) out.set(4, caveats)
  if (content.issuer !== undefined) out.set(5, publicKeyBytes(content.issuer))
  if (content.vm !== undefined) {
    out.set(6, [Buffer.from(content.vm.uuid.replaceAll('-', ''), 'hex'), Buffer.from(content.vm.bootNonce, 'hex')])
  }
  return encodeStrict(out)
}

/** @throws Malformed */
export function decodeBlock(payload: Uint8Array, root: boolean): BlockContent {
  const map = decodeStrict(payload)
  if (!(map instanceof Map)) throw new Malformed('a block must be a map')
  const known = root ? [1, 2, 3, 4, 5, 6] : [1, 2, 3, 4]
  for (const key of map.keys()) if (!known.includes(key as number)) throw new Malformed(`an unknown entry ${key}`)
  const id = hex(map.get(1), BLOCK_ID_BYTES, 'a block id')
  const holder = publicKeyFromBytes(bytesOf(map.get(2), PUBLIC_KEY_BYTES, 'a holder'))
  const rights = map.has(3) ? decodeRights(map.get(3)) : undefined
  const caveats = map.has(4) ? decodeCaveats(map.get(4)) : {}
  const narrowing: Narrowing = rights === undefined ? caveats : { ...caveats, rights }
  if (!root) return { id, holder, narrowing }
  const issuer = publicKeyFromBytes(bytesOf(map.get(5), PUBLIC_KEY_BYTES, 'an issuer'))
  return { id, holder, narrowing, issuer, vm: decodeVm(map.get(6)) }
}

/** @throws Malformed */
export function decodeSigned(value: unknown): SignedBlock {
  if (!Array.isArray(value) || value.length !== 2) throw new Malformed('a signed block is a pair')
  const [payload, signature] = value as unknown[]
  if (!(payload instanceof Uint8Array)) throw new Malformed('a payload must be bytes')
  return { payload, signature: bytesOf(signature, SIGNATURE_BYTES, 'a signature') }
}

/** Refuses a narrowing no block can carry. @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` */
export function checkNarrowing(narrowing: Narrowing): void {
  for (const name of CAVEAT_NAMES) {
    if (narrowing[name] === undefined) continue
    const fault = faultOf(name, narrowing)
    if (fault !== undefined) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${name} ${fault}`)
  }
}

function faultOf(name: CaveatName, narrowing: Caveats): string | undefined {
  try {
    return dimension(name).fault(narrowing[name])
  } catch (cause) {
    if (cause instanceof TypeError) return 'has the wrong shape'
    throw cause
  }
}

/** A dimension whose value type is not known where it is used in a loop over all of them. */
export function dimension(name: CaveatName): Dimension<unknown> {
  return DIMENSIONS[name] as unknown as Dimension<unknown>
}

function encodeCaveats(caveats: Caveats): Map<number, unknown> {
  const out = new Map<number, unknown>()
  for (const name of CAVEAT_NAMES) {
    const value = caveats[name]
    if (value !== undefined) out.set(dimension(name).code, dimension(name).encode(value))
  }
  return out
}

const nameOfCode = new Map<unknown, CaveatName>(CAVEAT_NAMES.map((name) => [dimension(name).code, name]))

function decodeCaveats(value: unknown): Caveats {
  if (!(value instanceof Map) || value.size === 0) throw new Malformed('caveats must be a map with entries')
  const out: Record<string, unknown> = {}
  for (const [code, inner] of value) {
    const name = nameOfCode.get(code)
    // A limit we can not judge is a limit we would pass over.
    if (name === undefined) throw new Malformed(`an unknown caveat ${code}`)
    out[name] = dimension(name).decode(inner)
  }
  return out as Caveats
}

function decodeRights(value: unknown): Right[] {
  if (!Array.isArray(value) || value.length > ALL_RIGHTS.length) throw new Malformed('rights must be a list')
  let before = 0
  return value.map((code: unknown) => {
    if (typeof code !== 'number' || code <= before) throw new Malformed('rights out of order')
    before = code
    const right = rightOfCode(code)
    if (right === undefined) throw new Malformed(`an unknown right ${code}`)
    return right
  })
}

function decodeVm(value: unknown): VmRef {
  if (!Array.isArray(value) || value.length !== 2) throw new Malformed('a VM is a pair of uuid and boot nonce')
  const uuid = hex(value[0], 16, 'a uuid')
  const dashed = `${uuid.slice(0, 8)}-${uuid.slice(8, 12)}-${uuid.slice(12, 16)}-${uuid.slice(16, 20)}-${uuid.slice(20)}`
  return { uuid: dashed, bootNonce: hex(value[1], 16, 'a boot nonce') }
}

function bytesOf(value: unknown, length: number, what: string): Uint8Array {
  if (value instanceof Uint8Array && value.length === length) return value
  throw new Malformed(`${what} has ${length} bytes`)
}

function hex(value: unknown, length: number, what: string): string {
  const bytes = bytesOf(value, length, what)
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex')
}
