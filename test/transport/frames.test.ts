import { decode, encode, rfc8949EncodeOptions } from 'cborg'
import fc from 'fast-check'
import { describe, expect, it, vi } from 'vitest'
import { CloudAppError } from '../../src/errors.js'
import { decodeBody, encodeFrame, encodeFrameParts, FRAME_LIMITS, FrameReader } from '../../src/transport/frames.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const hex = (text: string) => new Uint8Array(Buffer.from(text.replaceAll(' ', ''), 'hex'))

function refusal(body: Uint8Array, limits = FRAME_LIMITS): string {
  try {
    decodeBody(body, limits)
  } catch (error) {
    if (!CloudAppError.is(error, 'ERR_CLOUDAPP_PROTOCOL')) throw error
    return error.message
  }
  return 'accepted'
}

/** Values of the frame data model. */
const model = fc.letrec((tie) => ({
  value: fc.oneof(
    { maxDepth: 6 },
    fc.maxSafeInteger(),
    fc.double({ noNaN: true, noDefaultInfinity: true }).map((n) => (Object.is(n, -0) ? 0 : n)),
    fc.string({ unit: 'grapheme' }),
    fc.uint8Array(),
    fc.boolean(),
    fc.constant(null),
    fc.array(tie('value'), { maxLength: 5 }),
    fc.dictionary(fc.string(), tie('value'), { maxKeys: 5, noNullPrototype: true }),
  ),
})).value

describe('frames', () => {
  it('gives back every value of the data model, however the bytes are cut', () => {
    fc.assert(
      fc.property(fc.array(model, { maxLength: 4 }), fc.integer({ min: 1, max: 64 }), (values, cut) => {
        const stream = Buffer.concat(values.map((value) => encodeFrame(value)))
        const reader = new FrameReader()
        const got: unknown[] = []
        for (let at = 0; at < stream.length; at += cut) {
          reader.push(new Uint8Array(stream.subarray(at, at + cut)))
          for (let frame = reader.next(); frame !== undefined; frame = reader.next()) got.push(frame.value)
        }
        expect(got).toEqual(values)
        expect(reader.partial).toBe(false)
      }),
    )
  })

  it('writes what cborg writes, byte for byte', () => {
    fc.assert(
      fc.property(model, (value) => {
        const body = Buffer.from(encodeFrame(value)).subarray(4)
        expect(body.equals(encode(value, rfc8949EncodeOptions))).toBe(true)
      }),
      { numRuns: 2000 },
    )
  })

  it('does not copy long byte strings', () => {
    const long = new Uint8Array(100_000).fill(7)
    const { parts } = encodeFrameParts(['resolve', 1, { bytes: long, more: [long] }])
    expect(parts.filter((part) => part === long).length).toBe(2)
    const reader = new FrameReader()
    for (const part of parts) reader.push(part)
    const frame = reader.next() as { value: [string, number, { bytes: Uint8Array; more: Uint8Array[] }] }
    const got = frame.value[2]
    expect(Buffer.compare(got.bytes, long)).toBe(0)
    expect(Buffer.compare(got.more[0] as Uint8Array, long)).toBe(0)
    expect(Object.getPrototypeOf(got.bytes)).toBe(Uint8Array.prototype)
    expect(reader.partial).toBe(false)
  })

  it('has no form for what is outside the model', () => {
    class Thing {}
    for (const value of [undefined, 5n, () => {}, Symbol('s'), new Thing(), new Map(), [undefined]]) {
      expect(() => encodeFrame(value)).toThrow(/no wire form/)
    }
    const ring: unknown[] = []
    ring.push(ring)
    expect(() => encodeFrame(ring)).toThrow(/no wire form/)
  })

  it('accepts exactly the bytes it would itself send', () => {
    // Any accepted input encodes to itself: there is one form of each value.
    fc.assert(
      fc.property(model, fc.nat(), fc.integer({ min: 0, max: 255 }), (value, where, byte) => {
        const body = new Uint8Array(encode(value, rfc8949EncodeOptions))
        body[where % body.length] = byte
        let decoded: unknown
        try {
          decoded = decodeBody(body)
        } catch (error) {
          expect(CloudAppError.is(error, 'ERR_CLOUDAPP_PROTOCOL')).toBe(true)
          return
        }
        expect(Buffer.from(encode(decoded, rfc8949EncodeOptions)).equals(body)).toBe(true)
      }),
      { numRuns: 2000 },
    )
  })

  it('reads what cborg reads', () => {
    fc.assert(
      fc.property(model, fc.boolean(), (value, own) => {
        const body = new Uint8Array(encode(value, rfc8949EncodeOptions))
        expect(decodeBody(body.slice(), FRAME_LIMITS, own)).toEqual(decode(body))
      }),
      { numRuns: 2000 },
    )
  })

  it('throws nothing but ERR_CLOUDAPP_PROTOCOL on any bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        refusal(bytes)
      }),
      { numRuns: 5000 },
    )
  })

  it.each([
    ['a number in a longer form', '18 05', /shortest/],
    ['a length in a longer form', '58 01 00', /shortest/],
    ['an integer past 2^53', '1b 0020000000000000', /past 2\^53/],
    ['a negative integer past 2^53', '3b 001fffffffffffff', /past -2\^53/],
    ['an indefinite array', '9f 01 ff', /indefinite/],
    ['a reserved length', '1c', /reserved/],
    ['a tag', 'c1 00', /tag/],
    ['undefined', 'f7', /simple/],
    ['another simple value', 'e0', /simple/],
    ['NaN', 'f9 7e00', /finite/],
    ['Infinity', 'f9 7c00', /finite/],
    ['an integer as a float', 'f9 3c00', /integer/],
    ['a float in a longer form', 'fa 3fc00000', /shortest/],
    ['map keys out of order', 'a2 61 62 00 61 61 00', /order/],
    ['a repeated map key', 'a2 61 61 00 61 61 01', /repeated/],
    ['a key that is no text', 'a1 00 00', /not text/],
    ['text that is not UTF-8', '62 c3 28', /UTF-8/],
    ['bytes cut short', '43 01 02', /short/],
    ['an array that promises more than is there', '9a 7fffffff', /short/],
    ['a second item', '00 00', /after the end/],
    ['nothing', '', /short/],
  ])('refuses %s', (_, bytes, why) => {
    expect(refusal(hex(bytes))).toMatch(why)
  })

  it('refuses nesting and item counts past its limits', () => {
    const nested = (depth: number) => new Uint8Array([...new Array(depth).fill(0x81), 0x00])
    expect(refusal(nested(32))).toBe('accepted')
    expect(refusal(nested(33))).toMatch(/nesting/)
    expect(refusal(nested(100_000))).toMatch(/nesting/)
    const many = new Uint8Array(encode(new Array(1000).fill(0)))
    expect(refusal(many, { ...FRAME_LIMITS, items: 1000 })).toMatch(/values/)
    expect(refusal(many, { ...FRAME_LIMITS, items: 1001 })).toBe('accepted')
  })

  it('refuses an announced size past its limit before the bytes come', () => {
    const reader = new FrameReader({ ...FRAME_LIMITS, frameBytes: 100 })
    reader.push(hex('00000065'))
    expect(() => reader.next()).toThrow(/passes the limit/)
  })

  it('does not let __proto__ be more than a key', () => {
    const value = decodeBody(hex('a1 69 5f5f70726f746f5f5f a1 61 78 01')) as Record<string, unknown>
    expect(Object.getPrototypeOf(value)).toBe(Object.prototype)
    expect(Object.keys(value)).toEqual(['__proto__'])
  })
})
