import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { KeyPair } from '../../src/capabilities/keys.js'
import { type Manifest, parseManifest } from '../../src/capabilities/manifest.js'
import { diffManifests } from '../../src/capabilities/manifest-diff.js'
import { manifestBytes, signManifest, verifyManifest } from '../../src/capabilities/manifest-sign.js'

const publisher = KeyPair.fromSeed(new Uint8Array(32).fill(7))
const good: Manifest = parseManifest({
  cloudapp: 1,
  name: 'ids',
  title: 'Intrusion detector',
  version: '1.0.0',
  vendor: 'Acme',
  description: 'Looks.',
  image: `sha256:${'ab'.repeat(32)}`,
  rights: [
    { right: 'memory.read', reason: 'to look for hidden processes' },
    { right: 'vcpu.read', reason: 'to check the system-call entry', optional: true },
  ],
  publishes: ['findings'],
})
const refused = (reason: string) => expect.objectContaining({ code: 'ERR_CLOUDAPP_PROOF', details: { reason } })
const fault = (manifest: Manifest, options = {}) => {
  try {
    verifyManifest(manifest, options)
    return undefined
  } catch (error) {
    return error
  }
}

describe('a signed manifest', () => {
  const signed = signManifest(good, publisher)

  it('verifies, also with its fields in another order and after signing again', () => {
    expect(verifyManifest(signed)).toBe(publisher.publicKey)
    expect(verifyManifest(signed, { publisher: publisher.publicKey })).toBe(publisher.publicKey)
    const turned = Object.fromEntries(Object.entries(JSON.parse(JSON.stringify(signed))).reverse())
    expect(verifyManifest(parseManifest(turned))).toBe(publisher.publicKey)
    expect(signManifest(signed, publisher)).toEqual(signed)
  })

  it('is over bytes that do not change from version to version', () => {
    const bytes = Buffer.from(manifestBytes({ ...good, publisher: publisher.publicKey }))
    expect(bytes.subarray(0, 21).toString()).toBe('cloudapp manifest v1\0')
    // A map of 10: 1 → 1, 2 → "ids".
    expect(bytes.subarray(21, 29).toString('hex')).toBe('aa01010263696473')
    expect(bytes.subarray(-11).toString()).toContain('findings')
  })

  it('is refused without a signature, with another publisher, or by another key', () => {
    const { signature: _, ...unsigned } = signed
    expect(fault(unsigned)).toEqual(refused('unsigned'))
    const { publisher: __, ...nobody } = signed
    expect(fault(nobody)).toEqual(refused('unsigned'))
    const other = KeyPair.generate()
    expect(fault(signed, { publisher: other.publicKey })).toEqual(refused('publisher'))
    expect(fault({ ...signed, publisher: other.publicKey })).toEqual(refused('signature'))
  })

  it('is refused with any field changed', () => {
    const asked = signed.rights
    const changes: Partial<Manifest>[] = [
      { name: 'idz' },
      { title: 'Other' },
      { version: '1.0.1' },
      { vendor: 'Acme2' },
      { description: 'Looks!' },
      { image: `sha256:${'ac'.repeat(32)}` },
      { rights: [...asked, { right: 'memory.write', reason: 'x' }] },
      { rights: asked.map((one) => ({ ...one, optional: one.optional !== true })) },
      { rights: asked.map((one) => ({ ...one, reason: 'because' })) },
      { rights: [...asked].reverse() },
      { rights: [] },
      { publishes: [] },
    ]
    for (const change of changes)
      expect(fault({ ...signed, ...change }), JSON.stringify(change)).toEqual(refused('signature'))
    const { description: _, ...without } = signed
    expect(fault(without)).toEqual(refused('signature'))
  })

  it('is refused with any bit of the signature flipped', () => {
    fc.assert(
      fc.property(fc.nat(511), (bit) => {
        const bytes = Buffer.from(signed.signature ?? '', 'base64url')
        bytes[bit >> 3] = (bytes[bit >> 3] as number) ^ (1 << (bit & 7))
        expect(fault({ ...signed, signature: bytes.toString('base64url') })).toEqual(refused('signature'))
      }),
      { numRuns: 64 },
    )
  })
})

describe('the difference of two manifests', () => {
  const without = (change: Partial<Manifest>): Manifest => ({ ...good, ...change })
  it('is none between equals', () => {
    expect(diffManifests(good, without({}))).toEqual([])
  })

  it('marks what asks for more, first', () => {
    const update = without({
      version: '2.0.0',
      rights: [
        { right: 'memory.read', reason: 'another reason', optional: true },
        { right: 'vcpu.read', reason: 'to check the system-call entry' },
        { right: 'memory.write', reason: 'to repair' },
      ],
    })
    expect(diffManifests(good, update).map(({ what, widens, right }) => [what, widens, right])).toEqual([
      ['right-required', true, 'vcpu.read'],
      ['right-added', true, 'memory.write'],
      ['version', false, undefined],
      ['right-optional', false, 'memory.read'],
      ['reason', false, 'memory.read'],
    ])
  })

  it('tells what is given up, and never calls that more', () => {
    const less = without({ rights: good.rights.slice(0, 1), publishes: [], image: undefined })
    const changes = diffManifests(good, less)
    expect(changes.map(({ what }) => what).sort()).toEqual(['image', 'publishes-removed', 'right-removed'])
    expect(changes.some(({ widens }) => widens)).toBe(false)
  })

  it('takes another publisher or name for another party', () => {
    const other = KeyPair.generate().publicKey
    expect(diffManifests(good, without({ publisher: other }))).toMatchObject([{ what: 'publisher', widens: true }])
    expect(diffManifests(good, without({ name: 'miner' }))).toMatchObject([{ what: 'name', widens: true }])
  })
})
