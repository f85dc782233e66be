import {
  type Grant,
  KeyPair,
  type MintOptions,
  mintToken,
  type VerifiedToken,
  type VerifyOptions,
  verifyToken,
} from '../../src/capabilities/index.js'
import { CloudAppError } from '../../src/errors.js'

export const owner = KeyPair.fromSeed(new Uint8Array(32).fill(1))
export const broker = KeyPair.fromSeed(new Uint8Array(32).fill(2))
export const holders = [3, 4, 5, 6].map((n) => KeyPair.fromSeed(new Uint8Array(32).fill(n)))
export const sd = holders[0] as KeyPair
export const vm = { uuid: '3f2b8c1e-0d5a-4c57-9f6e-8a1b2c3d4e5f', bootNonce: '00112233445566778899aabbccddeeff' }
export const NOW = 1_795_000_000_000

export function mint(more: Partial<MintOptions> = {}): Uint8Array {
  return mintToken({
    owner,
    vm,
    holder: sd.publicKey,
    rights: ['vm.info', 'memory.read', 'vcpu.read'],
    audience: broker.publicKey,
    expires: '10m',
    now: NOW,
    ...more,
  })
}

export function verify(token: Uint8Array, more: Partial<VerifyOptions> = {}): VerifiedToken {
  return verifyToken(token, {
    broker: broker.publicKey,
    ownerOf: (uuid) => (uuid === vm.uuid ? { owner: owner.publicKey, bootNonce: vm.bootNonce } : undefined),
    now: NOW,
    revoked: () => false,
    transport: 'unix',
    ...more,
  })
}

/** The error a call throws; fails the test if it throws none, or one of another kind. */
export function fault(call: () => unknown): CloudAppError {
  try {
    call()
  } catch (error) {
    if (CloudAppError.is(error)) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

/** Why a token is refused. */
export function reason(token: Uint8Array, more: Partial<VerifyOptions> = {}): unknown {
  const error = fault(() => verify(token, more))
  return error.code === 'ERR_CLOUDAPP_TOKEN' ? error.details?.reason : error.code
}

export type { Grant }
