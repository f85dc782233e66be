import { mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { BufferMemory } from '../../src/testing/memory.js'
import { LocalMemory } from '../../src/vmi/local.js'
import type { Space, WalkPlan } from '../../src/vmi/memory.js'
import { buildImage, PA, VA } from '../conformance/image.js'

/** The matcher is slow on large arrays: it is asked only for its message. */
function same(left: unknown, right: unknown): void {
  if (!isDeepStrictEqual(left, right)) expect(left).toEqual(right)
}

/**
 * Two implementations that share no code (the native library, and the buffer of the testing kit) must say the same of
 * any guest, however it lies: an image that works, with words of it changed.
 */
describe('LocalMemory beside BufferMemory', () => {
  const image = buildImage()
  const original = image.ram.slice()
  const view = new DataView(image.ram.buffer)
  const buffer = new BufferMemory(image.ram)
  let folder = ''
  let local: LocalMemory
  let put: (at: number) => Promise<unknown>
  let file: Awaited<ReturnType<typeof open>>

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'cloudapp-differential-'))
    const path = join(folder, 'ram')
    await writeFile(path, image.ram)
    file = await open(path, 'r+')
    put = (at) => file.write(image.ram, at, 8, at)
    local = LocalMemory.open({ path })
  })
  afterAll(async () => {
    local.close()
    await file.close()
    await rm(folder, { recursive: true })
  })

  const { structures: at } = image
  const inRam = fc.integer({ min: 0, max: image.ram.length / 8 - 1 }).map((word) => word * 8)
  const place = fc.oneof(
    // Structures, tables, anywhere.
    fc.integer({ min: Number(PA.structures) / 8, max: Number(PA.structures) / 8 + 700 }).map((word) => word * 8),
    fc.integer({ min: Number(PA.tables) / 8, max: Number(PA.tables) / 8 + 512 * 40 }).map((word) => word * 8),
    inRam,
  )
  const value = fc.oneof(
    fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
    // A page-table entry; a pointer; a tagged one; a link of some element.
    fc.tuple(fc.integer({ min: 0, max: 1030 }), fc.integer({ min: 0, max: 0xfff })).map(([page, bits]) => {
      return (BigInt(page) << 12n) | BigInt(bits)
    }),
    inRam.map((pa) => VA.direct + BigInt(pa)),
    inRam.map((pa) => (VA.direct + BigInt(pa)) | 2n),
    fc.constantFrom(...at.elements, ...at.hashElements).map((element) => element + 16n),
    fc.constantFrom(0n, at.list, at.hlist, at.rbtree, at.xarray),
  )
  const patches = fc.array(fc.tuple(place, value), { minLength: 1, maxLength: 40 })

  const plans = (space: Space): WalkPlan[] => {
    const columns = [
      { path: [0], size: 8 },
      { path: [16, -16], size: 11 },
      { path: [48, 0], size: 8 },
    ]
    const common = { space, columns, limit: 300 }
    const xarray = { kind: 'xarray', shiftOffset: 0, slotsOffset: 40, slots: 16 } as const
    return [
      { ...common, kind: 'list', head: at.list, node: 16 },
      { ...common, kind: 'list', head: at.cyclicList, node: 16 },
      { ...common, kind: 'hlist', head: at.hlist, node: 16 },
      { ...common, kind: 'hash', head: at.hash, node: 16, count: 9 },
      { ...common, kind: 'rbtree', head: at.rbtree, node: 8 },
      { ...common, ...xarray, head: at.xarray },
      { ...common, kind: 'array', head: at.pointers, count: 8, stride: 8, pointers: true },
    ]
  }

  it('gives the same', { timeout: 120_000 }, async () => {
    await fc.assert(
      fc.asyncProperty(patches, fc.boolean(), async (changes, wide) => {
        for (const [where, word] of changes) {
          view.setBigUint64(where, word, true)
          await put(where)
        }
        try {
          const space = wide ? image.five : image.four
          const addresses = BigUint64Array.from(changes, ([where, word], i) =>
            i % 2 ? word : VA.direct + BigInt(where),
          )
          const reads = [
            { space, at: addresses, length: 8 },
            { space, at: addresses, length: 5000 },
          ]
          same(await local.read(reads), await buffer.read(reads))
          for (const plan of plans(space)) {
            const [[left], [right]] = [await local.walk([plan]), await buffer.walk([plan])]
            // Where a tree is broken they may look at its parts in another order, and with a memory of fixed size the
            // native walk notices later that a tree shares parts with itself: up to there they agree.
            const broken = plan.kind === 'rbtree' && (right?.end === 'cycle' || right?.end === 'fault')
            if (broken) expect(left?.end === 'complete' && right?.end === 'fault').toBe(false)
            else same(left, right)
          }
          const range = { space, start: VA.direct, end: VA.huge + (4n << 20n) }
          const pages = { ...range, limit: 40 }
          same(await local.pages(pages), await buffer.pages(pages))
          const near = { space, start: VA.direct + PA.patterns, end: VA.direct + PA.patterns + 0x6000n }
          for (const align of [1, 8, 1024]) {
            const search = { ...near, patterns: [Buffer.from('needle-'), new Uint8Array(1)], align, limit: 60 }
            same(await local.search(search), await buffer.search(search))
          }
          same(await local.digest(near), await buffer.digest(near))
        } finally {
          for (const [where] of changes) {
            image.ram.set(original.subarray(where, where + 8), where)
            await put(where)
          }
        }
      }),
      { numRuns: 200 },
    )
  })
})
