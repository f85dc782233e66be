import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Gather } from '../../src/transport/gather.js'

/** Bytes of all memory that a list of pieces holds on to. */
const held = (chunks: readonly Uint8Array[]): number =>
  [...new Set(chunks.map((chunk) => chunk.buffer))].reduce((sum, { byteLength }) => sum + byteLength, 0)

describe('gathered pieces', () => {
  it('hold on to a few times their bytes at most, and are the same bytes, however they are cut and taken', () => {
    const piece = fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 9000 }), fc.constant(4095), fc.constant(4096))
    fc.assert(
      fc.property(fc.array(fc.tuple(piece, fc.boolean()), { maxLength: 300 }), (pieces) => {
        const gather = new Gather()
        const chunks: Uint8Array[] = []
        const sent: Uint8Array[] = []
        const got: Uint8Array[] = []
        for (const [i, [length, take]] of pieces.entries()) {
          // Each lies in memory of which most is for somebody else.
          const bytes = new Uint8Array(256 * 1024).subarray(77, 77 + length).fill(i)
          sent.push(bytes.slice())
          gather.add(chunks, bytes)
          bytes.fill(0xee, 0, length < 4096 ? length : 0)
          const first = take ? chunks.shift() : undefined
          if (first !== undefined) got.push(first)
        }
        const bytes = chunks.reduce((sum, chunk) => sum + chunk.length, 0)
        expect(held(chunks)).toBeLessThanOrEqual(4 * bytes + 2 * 4096)
        expect(chunks.length).toBeLessThanOrEqual(2 * (bytes / 4096) + 3)
        expect(Buffer.concat([...got, ...chunks]).equals(Buffer.concat(sent))).toBe(true)
      }),
      { numRuns: 200 },
    )
  })

  it('of one byte each are few chunks', () => {
    const gather = new Gather()
    const chunks: Uint8Array[] = []
    for (let i = 0; i < 100_000; i++) gather.add(chunks, new Uint8Array([i]))
    expect(chunks.length).toBeLessThan(30)
    expect(held(chunks)).toBeLessThan(130_000)
  })
})
