import { describe, expect, it } from 'vitest'
import { type Fault, PHYSICAL } from '../../src/vmi/memory.js'
import { PA, VA } from './image.js'
import type { Context } from './memory.js'

const END = 4n * 1024n * 1024n

export function faultCases(context: Context): void {
  const { image } = context
  const faults = async (space: bigint, at: bigint, length = 8): Promise<readonly Fault[]> =>
    (await context.memory.read([{ space, at, length }]))[0]?.faults ?? []

  describe.each([
    ['4 levels', image.four, 4],
    ['5 levels', image.five, 5],
  ] as const)('faults with %s', (_, space, levels) => {
    it.each([
      ['no entry at level 4', VA.noRoot, { reason: 'not-present', level: 4, entry: 0x1234_5000n }],
      ['no entry at level 3', VA.noLevel3, { reason: 'not-present', level: 3, entry: 0x1234_5000n }],
      ['no entry at level 2', VA.noLevel2, { reason: 'not-present', level: 2, entry: 0x1234_5000n }],
      ['no entry at level 1', VA.noLevel1, { reason: 'not-present', level: 1, entry: 0x1234_5000n }],
      ['a large page at level 4', VA.reservedRoot, { reason: 'reserved-bit', level: 4 }],
      ['a 1 GiB page off its alignment', VA.reservedLevel3, { reason: 'reserved-bit', level: 3 }],
      ['a 2 MiB page off its alignment', VA.reservedLevel2, { reason: 'reserved-bit', level: 2 }],
      ['a table outside RAM', VA.tableOutside, { reason: 'outside-ram', level: 1 }],
      ['a page outside RAM', VA.pageOutside, { reason: 'outside-ram', level: 0 }],
      ['the part of a large page outside RAM', VA.huge + END, { reason: 'outside-ram', level: 0 }],
      ['a hole in the last level', VA.direct + PA.hole, { reason: 'not-present', level: 1, entry: 0n }],
    ] as const)('%s', async (_name, at, expected) => {
      expect(await faults(space, at)).toEqual([expect.objectContaining({ index: 0, address: at, ...expected })])
    })

    it('an address that is not canonical', async () => {
      const at = 0x0800_0000_0000_0000n
      expect(await faults(space, at)).toEqual([
        { index: 0, reason: 'non-canonical', address: at, level: levels, entry: 0n },
      ])
    })

    it('a read past the end of the space', async () => {
      const [fault] = await faults(space, 0xffff_ffff_ffff_fffcn)
      expect(fault).toMatchObject({ index: 0, reason: 'not-present', address: 0xffff_ffff_ffff_fffcn })
    })
  })

  describe('faults', () => {
    it('tells 57 bits of address from 48', async () => {
      expect(await faults(image.five, VA.wide)).toEqual([])
      expect(await faults(image.four, VA.wide)).toMatchObject([{ reason: 'non-canonical', level: 4 }])
    })

    it('lies outside RAM behind its end and everywhere above', async () => {
      for (const at of [END, 1n << 40n, (1n << 64n) - 1n]) {
        expect(await faults(PHYSICAL, at)).toMatchObject([{ reason: 'outside-ram', address: at, level: 0, entry: 0n }])
      }
    })

    it('names the first byte that failed and gives the others', async () => {
      const [physical] = await context.memory.read([{ space: PHYSICAL, at: END - 8n, length: 16 }])
      expect(physical?.faults).toMatchObject([{ index: 0, reason: 'outside-ram', address: END }])
      expect(Buffer.from(physical?.bytes ?? []).toString('hex')).toBe(`efbefecacefaedfe${'00'.repeat(8)}`)

      const at = VA.direct + PA.hole - 4n
      const [across] = await context.memory.read([{ space: image.four, at, length: 4096 + 8 }])
      expect(across?.faults).toMatchObject([{ index: 0, reason: 'not-present', address: at + 4n, level: 1 }])
      const expected = image.ram.slice(Number(PA.hole) - 4, Number(PA.hole) + 4100)
      expected.fill(0, 4, 4100)
      expect(across?.bytes).toEqual(expected)
    })

    it('gives one fault for each address that failed, and zeros for it', async () => {
      const at = BigUint64Array.from({ length: 1000 }, (_, i) => (i % 3 === 0 ? VA.noRoot : VA.large))
      const [result] = await context.memory.read([{ space: image.four, at, length: 8 }])
      const failed = Array.from(at.keys()).filter((i) => i % 3 === 0)
      expect(result?.faults.map((fault) => fault.index)).toEqual(failed)
      const words = new BigUint64Array(Uint8Array.from(result?.bytes ?? []).buffer)
      expect(words.filter((value) => value === 0n)).toHaveLength(failed.length)
    })

    it('keeps the faults of requests apart', async () => {
      const results = await context.memory.read([
        { space: image.four, at: VA.noRoot, length: 8 },
        { space: image.four, at: VA.large, length: 8 },
        { space: image.five, at: BigUint64Array.of(VA.large, VA.pageOutside), length: 8 },
      ])
      expect(results.map(({ faults }) => faults.map(({ index, reason }) => [index, reason]))).toEqual([
        [[0, 'not-present']],
        [],
        [[1, 'outside-ram']],
      ])
    })

    it('reads through tables that point at themselves', async () => {
      for (const [space, at] of [
        [image.four, VA.self4],
        [image.five, VA.self5],
      ] as const) {
        const root = Number(space & ~0xfffn)
        const [result] = await context.memory.read([{ space, at, length: 4096 }])
        expect(result?.faults).toEqual([])
        expect(result?.bytes).toEqual(image.ram.slice(root, root + 4096))
      }
    })

    it('faults in a root that is outside RAM', async () => {
      const space = 0x7fff_f000n | 4n
      expect(await faults(space, 0n)).toMatchObject([{ reason: 'outside-ram', level: 4, entry: 0n }])
    })
  })
}
