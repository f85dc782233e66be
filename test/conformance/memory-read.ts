import { describe, expect, it } from 'vitest'
import { LIMITS, PHYSICAL } from '../../src/vmi/memory.js'
import { PA, VA } from './image.js'
import type { Context } from './memory.js'

const MiB = 1024n * 1024n

export function readCases(context: Context): void {
  const { image } = context
  const spaces = [
    ['4 levels', image.four],
    ['5 levels', image.five],
  ] as const
  const slice = (pa: bigint, length: number) => image.ram.slice(Number(pa), Number(pa) + length)

  describe('read', () => {
    it('gives the end of RAM', () => {
      expect(context.memory.end).toBe(4n * MiB)
    })

    it('reads physical memory to its last byte', async () => {
      const [whole] = await context.memory.read([{ space: PHYSICAL, at: 0n, length: image.ram.length }])
      expect(Buffer.compare(whole?.bytes ?? new Uint8Array(), image.ram)).toBe(0)
      expect(whole?.faults).toEqual([])
      const [last] = await context.memory.read([{ space: PHYSICAL, at: 4n * MiB - 1n, length: 1 }])
      expect(last?.bytes).toEqual(slice(4n * MiB - 1n, 1))
    })

    it.each(spaces)('reads through 4 KiB, 2 MiB and 1 GiB pages with %s', async (_, space) => {
      const results = await context.memory.read([
        { space, at: VA.direct + PA.structures, length: 5000 },
        { space, at: VA.large + 0x1_2345n, length: 64 },
        { space, at: VA.huge + PA.patterns, length: 9000 },
        { space, at: VA.huge + 2n * MiB - 3n, length: 7 },
      ])
      expect(results.map((result) => result.faults)).toEqual([[], [], [], []])
      expect(results[0]?.bytes).toEqual(slice(PA.structures, 5000))
      expect(results[1]?.bytes).toEqual(slice(PA.large + 0x1_2345n, 64))
      expect(results[2]?.bytes).toEqual(slice(PA.patterns, 9000))
      expect(results[3]?.bytes).toEqual(slice(2n * MiB - 3n, 7))
    })

    it.each(spaces)('joins pages that lie apart in RAM with %s', async (_, space) => {
      const [result] = await context.memory.read([{ space, at: VA.scattered + 4090n, length: 4108 }])
      const expected = new Uint8Array(4108)
      expected.set(slice(PA.scattered + 3n * 4096n + 4090n, 6))
      expected.set(slice(PA.scattered + 4096n, 4096), 6)
      expected.set(slice(PA.scattered + 2n * 4096n, 6), 4102)
      expect(result?.bytes).toEqual(expected)
    })

    it('reads many addresses in one request, in their order', async () => {
      const at = BigUint64Array.from({ length: 3000 }, (_, i) => VA.large + BigInt(((i * 7919) % 4096) & ~7))
      const [result] = await context.memory.read([{ space: image.four, at, length: 8 }])
      const got = new BigUint64Array(Uint8Array.from(result?.bytes ?? []).buffer)
      expect(got).toEqual(at.map((va) => 0x1a60_0000n + (va - VA.large)))
      expect(result?.faults).toEqual([])
    })

    it('reads an empty list of addresses and an empty batch', async () => {
      const [result] = await context.memory.read([{ space: PHYSICAL, at: new BigUint64Array(0), length: 8 }])
      expect(result?.bytes).toHaveLength(0)
      expect(result?.faults).toEqual([])
      expect(await context.memory.read([])).toEqual([])
    })

    it('gives memory that stays as it was read', async () => {
      const request = { space: PHYSICAL, at: PA.structures, length: 16 }
      const [first] = await context.memory.read([request])
      const before = Uint8Array.from(first?.bytes ?? [])
      first?.bytes.fill(0xff)
      const [second] = await context.memory.read([request])
      expect(second?.bytes).toEqual(before)
    })

    it('reads the same synchronously', async () => {
      const { sync } = context.memory
      if (sync === undefined) return
      const requests = [
        { space: image.five, at: VA.direct + PA.structures, length: 100 },
        { space: image.five, at: VA.noRoot, length: 8 },
      ]
      expect(sync.read(requests)).toEqual(await context.memory.read(requests))
    })

    it('marks what was read while the VM stood still', async () => {
      const { setPaused } = context.subject
      if (setPaused === undefined) return
      const request = { space: PHYSICAL, at: 0n, length: 8 }
      const consistent = async () => (await context.memory.read([request]))[0]?.consistent
      expect(await consistent()).toBe(false)
      await setPaused(true)
      expect(await consistent()).toBe(true)
      expect(await consistent()).toBe(true)
      await setPaused(false)
      expect(await consistent()).toBe(false)
    })

    it('sees page tables change between two calls', async () => {
      const { write } = context.memory
      if (write === undefined) return
      const space = image.four
      const read = async () => (await context.memory.read([{ space, at: VA.large, length: 8 }]))[0]
      expect((await read())?.faults).toEqual([])
      // Physical slots of the root and below lead to the 2 MiB entry of VA.large.
      const entry = await walkTo(context, space, VA.large, 2)
      const before = image.ram.slice(Number(entry), Number(entry) + 8)
      await write.call(context.memory, [{ space: PHYSICAL, at: entry, bytes: new Uint8Array(8) }])
      expect((await read())?.faults).toMatchObject([{ index: 0, reason: 'not-present', level: 2 }])
      await write.call(context.memory, [{ space: PHYSICAL, at: entry, bytes: before }])
      expect((await read())?.faults).toEqual([])
    })

    it('stops for its signal', async () => {
      const signal = AbortSignal.abort()
      await expect(context.memory.read([{ space: PHYSICAL, at: 0n, length: 8 }], { signal })).rejects.toMatchObject({
        code: 'ERR_CLOUDAPP_ABORTED',
      })
    })

    it.each([
      ['a batch that is too large', () => Array(LIMITS.batch + 1).fill({ space: 0n, at: 0n, length: 1 })],
      ['a length that is too large', () => [{ space: 0n, at: 0n, length: LIMITS.readLength + 1 }]],
      ['too many addresses', () => [{ space: 0n, at: new BigUint64Array(LIMITS.addresses + 1), length: 1 }]],
      ['results that are too large', () => [{ space: 0n, at: new BigUint64Array(5), length: LIMITS.readLength }]],
    ])('refuses %s', async (_, requests) => {
      await expect(context.memory.read(requests())).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT' })
    })

    it.each([
      ['length 0', { space: 0n, at: 0n, length: 0 }],
      ['a broken length', { space: 0n, at: 0n, length: 1.5 }],
      ['an address beyond 64 bits', { space: 0n, at: 1n << 64n, length: 1 }],
      ['a negative address', { space: 0n, at: -1n, length: 1 }],
      ['a space of 3 levels', { space: 0x1003n, at: 0n, length: 1 }],
    ])('refuses %s', async (_, request) => {
      await expect(context.memory.read([request])).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    })
  })

  describe('write', () => {
    it('writes what is read back, across pages', async () => {
      const { write } = context.memory
      if (write === undefined) return
      const at = VA.scattered + 4092n
      const before = await context.memory.read([{ space: image.five, at, length: 8 }])
      const bytes = Uint8Array.from([1, 2, 3, 4, 5, 6, 7, 8])
      expect(await write.call(context.memory, [{ space: image.five, at, bytes }])).toEqual([{ written: 8 }])
      const [after] = await context.memory.read([{ space: image.five, at, length: 8 }])
      expect(after?.bytes).toEqual(bytes)
      const [physical] = await context.memory.read([{ space: PHYSICAL, at: PA.scattered + 4096n, length: 4 }])
      expect(physical?.bytes).toEqual(bytes.slice(4))
      await write.call(context.memory, [{ space: image.five, at, bytes: before[0]?.bytes ?? new Uint8Array() }])
    })

    it('writes up to a fault', async () => {
      const { write } = context.memory
      if (write === undefined) return
      const at = VA.scattered + 3n * 4096n - 2n
      const original = slice(PA.scattered + 2n * 4096n + 4094n, 2)
      const [result] = await write.call(context.memory, [{ space: image.four, at, bytes: new Uint8Array(8) }])
      expect(result).toMatchObject({ written: 2, fault: { reason: 'not-present', address: at + 2n, level: 1 } })
      await write.call(context.memory, [{ space: image.four, at, bytes: original }])
    })
  })
}

/** Physical address of the entry for `va` at `level`. */
async function walkTo({ memory }: Context, space: bigint, va: bigint, level: number): Promise<bigint> {
  let table = space & 0x000f_ffff_ffff_f000n
  for (let at = Number(space & 7n); ; at--) {
    const slot = table + ((va >> BigInt(12 + 9 * (at - 1))) & 511n) * 8n
    if (at === level) return slot
    const [entry] = await memory.read([{ space: PHYSICAL, at: slot, length: 8 }])
    table = Buffer.from(entry?.bytes ?? []).readBigUInt64LE() & 0x000f_ffff_ffff_f000n
  }
}
