import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { CloudAppError } from '../../../src/errors.js'
import { parseElf } from '../../../src/vmi/sources/elf.js'
import { parseLime } from '../../../src/vmi/sources/lime.js'
import type { SnapshotBytes, SnapshotParts } from '../../../src/vmi/sources/snapshot.js'
import { bytesOf, elfFile, filled, limeRange, note, qemuState, xenFile } from './snapshot-files.js'

const CODES = ['ERR_CLOUDAPP_SOURCE', 'ERR_CLOUDAPP_UNSUPPORTED', 'ERR_CLOUDAPP_LIMIT']

const page = filled(0x1000, 1)
const notes = Buffer.concat([note('CORE', 1, Buffer.alloc(336)), note('QEMU', 0, qemuState(BigInt))])
const FILES: readonly (readonly [string, Buffer, (bytes: SnapshotBytes) => Promise<SnapshotParts>])[] = [
  ['elf', elfFile([{ type: 4, bytes: notes }, { bytes: page }, { physical: 0x8000n, bytes: page }]), parseElf],
  ['elf, counted in section 0', elfFile([{ bytes: page }], { extended: true }), parseElf],
  ['xen', xenFile({ frames: [1n, 7n], pages: Buffer.concat([page, page]), status: Buffer.alloc(5168) }), parseElf],
  ['lime', Buffer.concat([limeRange(0n, 0xfffn, page), limeRange(0x8000n, 0x8fffn, page)]), parseLime],
]

// Numbers that break arithmetic, and small ones that keep a file plausible.
const number = fc.oneof(
  fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
  fc.constantFrom(0n, 1n, 8n, 0xffffn, 0xffff_ffffn, 1n << 52n, 1n << 63n, (1n << 64n) - 1n),
  fc.bigInt({ min: 0n, max: 0x4000n }),
)
const change = fc.record({ at: fc.nat(), size: fc.constantFrom(1, 2, 4, 8), value: number })

describe.each(FILES)('a hostile file: %s', (_, file, parse) => {
  it('is read as it was made', async () => {
    const { regions } = await parse(bytesOf(file))
    expect(regions.length).toBeGreaterThan(0)
  })

  it('gives a sound table or a typed error, whatever is changed in it', async () => {
    let refused = 0
    await fc.assert(
      fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 6 }), fc.nat(), async (changes, cut) => {
        const bytes = Buffer.from(cut % 4 === 0 ? file.subarray(0, cut % (file.length + 1)) : file)
        for (const { at, size, value } of changes) {
          // Mostly the headers, where the numbers are.
          const place = at % (at % 5 === 0 ? bytes.length : 640)
          if (place + size <= bytes.length) {
            const word = Buffer.alloc(8)
            word.writeBigUInt64LE(value)
            word.copy(bytes, place, 0, size)
          }
        }
        let parts: SnapshotParts
        try {
          parts = await parse(bytesOf(bytes))
        } catch (error) {
          if (!CloudAppError.is(error)) throw error
          expect(CODES).toContain(error.code)
          refused++
          return
        }
        let end = 0n
        for (const { address, size, offset } of parts.regions) {
          expect(size).toBeGreaterThan(0n)
          expect(address).toBeGreaterThanOrEqual(end)
          expect(offset + size).toBeLessThanOrEqual(BigInt(bytes.length))
          end = address + size
        }
        expect(end).toBeLessThanOrEqual(1n << 52n)
        expect(parts.regions.length).toBeLessThanOrEqual(65_536)
        expect(parts.vcpus?.length ?? 0).toBeLessThanOrEqual(1024)
      }),
      { numRuns: 500 },
    )
    expect(refused).toBeGreaterThan(0)
  })
})

it('reads a bounded number of LiME ranges', async () => {
  const range = (i: number) => limeRange(BigInt(i) * 16n, BigInt(i) * 16n + 7n, page.subarray(0, 8))
  const ranges = Array.from({ length: 65_537 }, (_, i) => range(i))
  expect((await parseLime(bytesOf(Buffer.concat(ranges.slice(1))))).regions).toHaveLength(65_536)
  await expect(parseLime(bytesOf(Buffer.concat(ranges)))).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT' })
})
