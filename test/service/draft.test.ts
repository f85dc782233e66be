import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { FINDING_LIMITS } from '../../src/service/bounds.js'
import { draftFinding, type FindingInput } from '../../src/service/draft.js'
import { findingEvent } from '../../src/service/finding-event.js'
import { ocsfProblems } from '../../src/service/ocsf/index.js'
import { PRODUCT, WEB } from './support.js'

const state = { uid: 'u', change: 'create', status: 1, revision: 1, count: 1, first: 1, last: 1, time: 1 } as const
const base = { key: 'k', about: WEB, title: 't', severity: 'low' } as const

function emit(input: Partial<FindingInput>) {
  const event = findingEvent(draftFinding({ ...base, ...input }), state, PRODUCT)
  expect(ocsfProblems('detection_finding', JSON.parse(JSON.stringify(event)))).toEqual([])
  return event
}

describe('draftFinding', () => {
  it('writes addresses as 0x strings and bytes as hexadecimal', () => {
    const { evidences } = emit({
      evidence: { data: { at: 0xffff_ffff_8100_0000n, code: Uint8Array.of(0xe9, 1), many: new BigUint64Array([1n]) } },
    })
    expect(evidences?.[0]?.data).toEqual({ at: '0xffffffff81000000', code: 'e901', many: ['0x1'] })
  })

  it('cuts what is too long, says so, and still raises it', () => {
    const event = emit({
      title: 'x'.repeat(10_000),
      evidence: [{ name: 'big', data: { blob: new Uint8Array(1_000_000), text: 'y'.repeat(100_000) } }],
    })
    expect(event.finding_info.title).toHaveLength(FINDING_LIMITS.title)
    expect(event.metadata.is_truncated).toBe(true)
    expect(event.metadata.untruncated_size).toBeGreaterThan(1_000_000)
    expect(event.unmapped.cloudapp.cut).toEqual([
      'evidence[0].data.blob: 4096 of 1000000 bytes',
      'evidence[0].data.text: 4096 of 100000 characters',
      'title: 256 of 10000 characters',
    ])
  })

  it('bounds the evidence as a whole', () => {
    const evidence = Array.from({ length: 200 }, () => ({ data: Array.from({ length: 1000 }, () => 'z'.repeat(1000)) }))
    const event = emit({ evidence })
    expect(Buffer.byteLength(JSON.stringify(event))).toBeLessThan(2 * FINDING_LIMITS.evidenceBytes)
    expect(event.unmapped.cloudapp.cut?.join()).toMatch(/evidence: 64 of 200.*over 65536 bytes/)
  })

  it('cuts cycles at the stated depth', () => {
    const loop: Record<string, unknown> = {}
    loop.self = loop
    expect(emit({ evidence: { data: loop } }).unmapped.cloudapp.cut?.[0]).toMatch(/deeper than 8 levels/)
  })

  it('keeps long keys apart and never makes a hostile one an error', () => {
    const one = draftFinding({ ...base, key: `${'k'.repeat(5000)}1` }).key
    const two = draftFinding({ ...base, key: `${'k'.repeat(5000)}2` }).key
    expect(one).not.toBe(two)
    expect(one.length).toBeLessThanOrEqual(FINDING_LIMITS.key)
  })

  it('takes any text and any data a guest may hold', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: 'binary' }),
        fc.object({ withBigInt: true, withNullPrototype: true, withDate: true, withTypedArray: true }),
        (text, data) => {
          const event = emit({
            title: text,
            key: text,
            evidence: [{ name: text, process: { pid: 1, name: text }, data }],
          })
          expect(JSON.parse(JSON.stringify(event))).toEqual(event)
        },
      ),
    )
  }, 30_000)

  it.each<[string, object, string]>([
    ['a misspelled key', { sevrity: 'low' }, 'ERR_CLOUDAPP_UNKNOWN_OPTION'],
    ['an unknown severity', { severity: 'huge' }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    ['no VM', { about: undefined }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    ['a VM without uuid', { about: { name: 'web', uuid: 'x', bootNonce: '' } }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    ['a score beyond 100', { confidence: 101 }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    ['a function as evidence', { evidence: { data: () => 1 } }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    ['no key', { key: undefined }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
  ])('refuses %s', (_, spoil, code) => {
    expect(() => draftFinding({ ...base, ...spoil } as FindingInput)).toThrow(expect.objectContaining({ code }))
  })

  it('takes a hit of the integrity checks as it is', () => {
    const hit = { id: 'hidden:1', kind: 'hidden-process', title: 't', severity: 'high', confidence: 'medium' } as const
    const event = emit({ ...hit, evidence: { process: { pid: 1, name: 'x' }, module: 'm', data: { at: 1n } } })
    expect(event.finding_info.types).toEqual(['hidden-process'])
    expect(event.evidences?.[0]?.data).toEqual({ at: '0x1', module: { name: 'm' } })
  })

  it('takes the id of a hit as its key', () => {
    expect(draftFinding({ id: 'hit-1', about: { identity: WEB }, title: 't', severity: 'low' }).key).toBe('hit-1')
  })
})
