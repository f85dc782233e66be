import { readFileSync, writeFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { type PublicKey, publicKeyBytes, tokenFromText, verifySignature } from '../../src/capabilities/index.js'
import { CloudAppError } from '../../src/errors.js'
import { invalidVectors, proofVectors, validVectors } from '../vectors/make.js'
import { verify } from './rig.js'

// `CLOUDAPP_WRITE_VECTORS=1 npx vitest run --project unit test/capabilities/vectors.test.ts` writes the files anew
// (`npx biome check --write test/vectors` after it): only for a new version of the format.
function vectors<T>(name: string, made: T): T {
  const path = new URL(`../vectors/${name}.json`, import.meta.url)
  const text = `${JSON.stringify(made, undefined, 2)}\n`
  if (process.env.CLOUDAPP_WRITE_VECTORS === '1') writeFileSync(path, text)
  const kept = readFileSync(path, 'utf8')
  test(`${name}.json is what the script makes`, () => {
    expect(JSON.parse(kept)).toEqual(JSON.parse(text))
  })
  return JSON.parse(kept) as T
}

const bytes = (hex: string) => Buffer.from(hex, 'hex')
const valid = vectors('token-valid', validVectors())

interface Place {
  broker?: PublicKey
  owner?: PublicKey | null
  bootNonce?: string
  now?: number
  revoked?: readonly string[]
}

function verifyAt(token: Uint8Array, place: Place = {}) {
  const { register, broker, now } = valid
  const owner = place.owner === undefined ? register.owner : place.owner
  return verify(token, {
    broker: place.broker ?? broker,
    ownerOf: (uuid) =>
      uuid === register.uuid && owner ? { owner, bootNonce: place.bootNonce ?? register.bootNonce } : undefined,
    now: place.now ?? now,
    revoked: (id) => place.revoked?.includes(id) === true,
    transport: 'unix',
  })
}

describe('valid chains', () => {
  test.each(valid.vectors.map((vector) => [vector.name, vector] as const))('%s', (_, vector) => {
    const token = verifyAt(bytes(vector.token))
    expect(Buffer.compare(tokenFromText(vector.text), bytes(vector.token))).toBe(0)
    expect(Buffer.from(token.hash).toString('hex')).toBe(vector.hash)
    expect(token.holder).toBe(vector.holder)
    const json = JSON.stringify(token.grant, (_key, value) =>
      typeof value === 'bigint' ? `0x${value.toString(16)}` : value,
    )
    expect(JSON.parse(json)).toEqual(vector.grant)
    for (const [i, block] of vector.blocks.entries()) {
      const signer = token.blocks[i]?.signer as PublicKey
      expect(verifySignature(signer, bytes(block.signed), bytes(block.signature))).toBe(true)
    }
  })
})

describe('refused chains', () => {
  const { vectors: list } = vectors('token-invalid', invalidVectors())
  test.each(list.map((vector) => [vector.name, vector] as const))('%s', (_, vector) => {
    try {
      verifyAt(bytes(vector.token), vector.verify)
    } catch (error) {
      expect(CloudAppError.is(error)).toBe(true)
      expect(error).toMatchObject({ code: vector.code })
      if (vector.reason !== null) expect((error as CloudAppError).details?.reason).toBe(vector.reason)
      return
    }
    throw new Error('it was verified')
  })
})

describe('proofs', () => {
  const { vectors: list } = vectors('proof', proofVectors())
  test.each(list.map((vector) => [vector.binding.transport, vector] as const))('over %s', (_, vector) => {
    const holder = valid.keys.third?.text as PublicKey
    const broker = valid.keys.broker?.text as PublicKey
    const message = (context: string, ...parts: string[]) => Buffer.concat([Buffer.from(context), ...parts.map(bytes)])
    const asked = message('cloudapp proof holder v1\0', vector.transcript)
    expect(verifySignature(holder, asked, bytes(vector.holderSignature))).toBe(true)
    const answered = message('cloudapp proof broker v1\0', vector.transcript, vector.holderSignature)
    expect(verifySignature(broker, answered, bytes(vector.brokerSignature))).toBe(true)
    expect(bytes(vector.transcript).subarray(0, 32)).toEqual(Buffer.from(publicKeyBytes(broker)))
  })
})
