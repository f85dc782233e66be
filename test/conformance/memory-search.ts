import { createHash } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { LIMITS, PHYSICAL, type SearchRequest } from '../../src/vmi/memory.js'
import { PA, VA } from './image.js'
import type { Context } from './memory.js'

const PAGE = 4096n
const END = 4n * 1024n * 1024n
const bytes = (text: string) => Buffer.from(text, 'latin1')

export function searchCases(context: Context): void {
  const { image } = context
  const search = (part: Partial<SearchRequest>) =>
    context.memory.search({
      space: PHYSICAL,
      start: 0n,
      end: END,
      patterns: [bytes('needle-one')],
      limit: 100,
      ...part,
    })
  const places = async (part: Partial<SearchRequest>) =>
    (await search(part)).matches.map(({ at, pattern }) => [at, pattern])
  const one = [0n, 0x1000n, 0x2abcn].map((offset) => PA.patterns + offset)
  const two = PA.patterns + 0x4000n - 5n

  describe('search', () => {
    it('finds every match, in the order of addresses', async () => {
      expect(await search({ patterns: [bytes('needle-two'), bytes('needle-one')] })).toEqual({
        matches: [...one.map((at) => ({ pattern: 1, at })), { pattern: 0, at: two }],
        end: 'complete',
        next: END,
        consistent: false,
      })
    })

    it('finds all patterns that match at one place, and overlapping ones', async () => {
      expect(await places({ patterns: [bytes('needle'), bytes('ne'), bytes('needle-two')], start: two })).toEqual([
        [two, 0],
        [two, 1],
        [two, 2],
      ])
      const a = PA.scattered
      expect(await places({ patterns: [bytes('AAA')], start: a + 10n, end: a + 16n })).toEqual(
        [10n, 11n, 12n, 13n].map((i) => [a + i, 0]),
      )
    })

    it('finds only what lies wholly in the range', async () => {
      const [at = 0n] = one
      expect(await places({ start: at, end: at + 10n })).toEqual([[at, 0]])
      expect(await places({ start: at, end: at + 9n })).toEqual([])
      expect(await places({ start: at + 1n, end: at + 11n })).toEqual([])
    })

    it('finds across pages, also where they lie apart in RAM', async () => {
      const patterns = [bytes('split-pattern')]
      expect(await places({ patterns })).toEqual([])
      const range = { start: VA.scattered, end: VA.scattered + 3n * PAGE, patterns }
      for (const space of [image.four, image.five]) {
        expect(await places({ ...range, space })).toEqual([[VA.scattered + PAGE - 4n, 0]])
      }
    })

    it('passes over holes', async () => {
      const range = { space: image.four, start: VA.narrowed, end: VA.direct + END }
      expect(await places(range)).toEqual(one.map((at) => [VA.direct + at, 0]))
    })

    it('finds at the very end of RAM', async () => {
      const pattern = Uint8Array.from([0xce, 0xfa, 0xed, 0xfe])
      expect(await places({ patterns: [pattern] })).toEqual([[END - 4n, 0]])
      expect(await places({ patterns: [Uint8Array.of(0xfe)], start: END - 1n })).toEqual([[END - 1n, 0]])
      expect(await places({ patterns: [pattern], end: END + (1n << 45n) })).toEqual([[END - 4n, 0]])
    })

    it.each([1, 2, 4, 8, 16, 256, 4096, 65_536, 2 ** 21])('keeps to addresses of alignment %i', async (align) => {
      const aligned = one.filter((at) => at % BigInt(align) === 0n)
      expect(await places({ align })).toEqual(aligned.map((at) => [at, 0]))
    })

    it('keeps to an offset from the alignment', async () => {
      expect(await places({ align: 4096, offset: 0xabc })).toEqual([[PA.patterns + 0x2abcn, 0]])
      expect(await places({ align: 65_536, offset: 0x2abc + (Number(PA.patterns) % 65_536) })).toEqual([
        [PA.patterns + 0x2abcn, 0],
      ])
      expect(await places({ align: 16, offset: 12 })).toEqual([[PA.patterns + 0x2abcn, 0]])
      expect(await places({ align: 4096, offset: 0xffb, patterns: [bytes('needle-two')] })).toEqual([[two, 0]])
    })

    it('finds long patterns and patterns of zeros', async () => {
      const at = two - 200n
      const long = image.ram.slice(Number(at), Number(at) + LIMITS.patternLength)
      expect(await places({ patterns: [long] })).toEqual([[at, 0]])
      const zeros = await search({ patterns: [new Uint8Array(16)], start: END - PAGE, end: END, limit: 65_536 })
      expect(zeros).toMatchObject({ end: 'complete' })
      expect(zeros.matches).toHaveLength(4096 - 8 - 15)
    })

    it('goes on where its limit ended it, without loss or repetition', async () => {
      const patterns = [bytes('needle-one'), bytes('needle'), bytes('n')]
      const whole = await search({ patterns })
      for (const limit of [3, 4, 5]) {
        const found: unknown[] = []
        let start = 0n
        for (let calls = 0; calls < 100; calls++) {
          const part = await search({ patterns, start, limit })
          expect(part.matches.length).toBeLessThanOrEqual(limit)
          found.push(...part.matches)
          start = part.next
          if (part.end === 'complete') break
        }
        expect(found).toEqual(whole.matches)
      }
    })

    it('gives the same when there are more matches than one crossing takes', async () => {
      const a = PA.scattered
      const { matches, end } = await search({ patterns: [bytes('A')], start: a, end: a + PAGE, limit: 65_536 })
      expect(end).toBe('complete')
      expect(matches.map(({ at }) => at)).toEqual(Array.from({ length: 4096 }, (_, i) => a + BigInt(i)))
    })

    it.each([
      ['no pattern', { patterns: [] }],
      ['an empty pattern', { patterns: [new Uint8Array(0)] }],
      ['an alignment that is no power of two', { align: 3 }],
      ['an offset that is not below the alignment', { align: 8, offset: 8 }],
      ['an empty range', { start: 5n, end: 5n }],
    ])('refuses %s', async (_, part) => {
      await expect(search(part)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    })

    it.each([
      ['patterns', { patterns: Array(LIMITS.patterns + 1).fill(bytes('x')) }],
      ['bytes in a pattern', { patterns: [new Uint8Array(LIMITS.patternLength + 1)] }],
      ['matches', { limit: LIMITS.matches + 1 }],
    ])('refuses too many %s', async (_, part) => {
      await expect(search(part)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT' })
    })
  })

  describe('digest', () => {
    const sha256 = (pa: bigint) =>
      createHash('sha256')
        .update(image.ram.subarray(Number(pa), Number(pa + PAGE)))
        .digest()

    it('hashes pages where they are, and leaves out what faults', async () => {
      const start = VA.scattered
      const result = await context.memory.digest({ space: image.five, start, end: start + 4n * PAGE })
      expect(result).toMatchObject({ pages: 4, present: Uint8Array.of(1, 1, 1, 0) })
      const expected = [3n, 1n, 2n].map((i) => sha256(PA.scattered + i * PAGE))
      expect(Buffer.from(result.digests)).toEqual(Buffer.concat([...expected, new Uint8Array(32)]))
    })

    it('hashes physical memory over many slices', async () => {
      const result = await context.memory.digest({ space: PHYSICAL, start: 0n, end: END + PAGE })
      expect(result.pages).toBe(1025)
      expect(result.present[1023]).toBe(1)
      expect(result.present[1024]).toBe(0)
      for (const page of [0, 1, 512, 1023]) {
        const got = Buffer.from(result.digests.slice(page * 32, page * 32 + 32))
        expect(got).toEqual(sha256(BigInt(page) * PAGE))
      }
    })

    it('refuses a range that is not of whole pages', async () => {
      const request = { space: PHYSICAL, start: 1n, end: PAGE }
      await expect(context.memory.digest(request)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
      const long = { space: PHYSICAL, start: 0n, end: BigInt(LIMITS.digestPages + 1) * PAGE }
      await expect(context.memory.digest(long)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT' })
    })
  })
}
