import { describe, expect, it } from 'vitest'
import { PageFlags, type PagesRequest } from '../../src/vmi/memory.js'
import { PA, PERMISSIONS, VA } from './image.js'
import type { Context } from './memory.js'

const PAGE = 4096n
const MiB = 1024n * 1024n
const GiB = 1024n * MiB

export function pagesCases(context: Context): void {
  const { image } = context
  const runs = async (request: PagesRequest) => {
    const result = await context.memory.pages(request)
    const rows = Array.from({ length: result.runs }, (_, i) => [
      result.virtual[i],
      result.physical[i],
      result.sizes[i],
      result.flags[i],
    ])
    return { rows, end: result.end, next: result.next }
  }

  describe.each([
    ['4 levels', image.four],
    ['5 levels', image.five],
  ] as const)('pages with %s', (_, space) => {
    it('joins pages that are contiguous both ways and have equal flags', async () => {
      const { rows, end, next } = await runs({ space, start: VA.direct, end: VA.huge + GiB, limit: 100 })
      expect(end).toBe('complete')
      expect(next).toBe(VA.huge + GiB)
      expect(rows).toEqual([
        [VA.direct, 0n, PA.hole, PageFlags.Write],
        // To the end of the 2 MiB page: it continues the 4 KiB ones before it.
        [VA.direct + PA.hole + PAGE, PA.hole + PAGE, 4n * MiB - PA.hole - PAGE, PageFlags.Write],
        [VA.huge, 0n, GiB, PageFlags.Execute],
      ])
    })

    it('keeps apart what is contiguous only in RAM or only in the space', async () => {
      const { rows } = await runs({ space, start: VA.scattered, end: VA.scattered + 5n * PAGE, limit: 100 })
      expect(rows).toEqual([
        [VA.scattered, PA.scattered + 3n * PAGE, PAGE, 0],
        [VA.scattered + PAGE, PA.scattered + PAGE, 2n * PAGE, 0],
        [VA.scattered + 4n * PAGE, PA.scattered + 3n * PAGE, PAGE, 0],
      ])
    })

    it('combines the permissions of all levels', async () => {
      const count = BigInt(PERMISSIONS.length)
      const { rows } = await runs({ space, start: VA.permissions, end: VA.permissions + count * PAGE, limit: 100 })
      expect(rows.map((row) => row[3])).toEqual(PERMISSIONS.map(([, flags]) => flags))
      const narrowed = await runs({ space, start: VA.narrowed, end: VA.narrowed + PAGE, limit: 100 })
      expect(narrowed.rows).toEqual([[VA.narrowed, PA.permissions, PAGE, 0]])
    })

    it('gives mappings of what is no RAM, and passes over malformed entries', async () => {
      const { rows } = await runs({ space, start: VA.reservedRoot, end: VA.pageOutside + PAGE, limit: 100 })
      expect(rows).toEqual([[VA.pageOutside, 0x7fff_f000n, PAGE, PageFlags.Execute]])
    })

    it('gives only mappings with the wanted flags', async () => {
      const count = BigInt(PERMISSIONS.length)
      const want = PageFlags.User | PageFlags.Write
      const request = { space, start: VA.permissions, end: VA.permissions + count * PAGE, want, limit: 100 }
      const { rows } = await runs(request)
      expect(rows.map((row) => row[0])).toEqual([VA.permissions + 3n * PAGE, VA.permissions + 5n * PAGE])
    })

    it('crosses the hole of addresses that are not canonical', async () => {
      const whole = await context.memory.pages({ space, start: 0n, end: 1n << 63n, limit: 1000 })
      expect(whole.end).toBe('complete')
      expect([...whole.virtual]).toContain(VA.narrowed)
      const over = await context.memory.pages({ space, start: VA.narrowed, end: VA.direct + PAGE, limit: 1000 })
      expect([...over.virtual]).toEqual([
        VA.narrowed,
        ...(space === image.five ? over.virtual.slice(1, -1) : []),
        VA.direct,
      ])
    })

    it('goes on where its limit ended it', async () => {
      const range = { space, end: VA.scattered + 4n * PAGE }
      const whole = await runs({ ...range, start: VA.direct, limit: 100 })
      const first = await runs({ ...range, start: VA.direct, limit: 2 })
      expect(first.end).toBe('limit')
      const rest = await runs({ ...range, start: first.next, limit: 100 })
      expect(rest.end).toBe('complete')
      expect([...first.rows, ...rest.rows]).toEqual(whole.rows)
      expect(await runs({ ...range, start: VA.direct, limit: whole.rows.length })).toMatchObject({ end: 'complete' })
    })
  })

  describe('pages', () => {
    it('ends at its limit in tables that point at themselves', async () => {
      // The whole of the self-referencing slot.
      const start = 0xffff_a480_0000_0000n
      const result = await context.memory.pages({ space: image.four, start, end: start + 512n * GiB, limit: 20 })
      expect(result).toMatchObject({ runs: 20, end: 'limit' })
      expect(result.next > start).toBe(true)
    })

    it('covers the last page of the space', async () => {
      const result = await context.memory.pages({ space: image.four, start: 0n, end: 1n << 64n, limit: 10 })
      expect(result.end).toBe('limit')
      const last = { space: image.four, start: (1n << 64n) - PAGE, end: 1n << 64n, limit: 10 }
      expect(await context.memory.pages(last)).toMatchObject({ runs: 0, end: 'complete', next: 1n << 64n })
    })

    it.each([
      ['physical memory', { space: 0n }],
      ['an empty range', { end: 0n }],
      ['a limit of 0', { limit: 0 }],
      ['flags that do not exist', { want: 8 }],
    ])('refuses %s', async (_, part) => {
      const request = { space: image.four, start: 0n, end: PAGE, limit: 10, ...part }
      await expect(context.memory.pages(request)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    })
  })
}
