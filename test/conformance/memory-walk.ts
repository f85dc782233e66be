import { describe, expect, it } from 'vitest'
import { type CellState, type Column, LIMITS, type WalkPlan, type WalkResult } from '../../src/vmi/memory.js'
import { PA, VA } from './image.js'
import type { Context } from './memory.js'

const OK: (typeof CellState)['Ok'] = 0
const NULL: (typeof CellState)['Null'] = 1
const FAULT: (typeof CellState)['Fault'] = 2

const value: Column = { path: [0], size: 8 }
const words = (bytes: Uint8Array | undefined) => [...new BigUint64Array(Uint8Array.from(bytes ?? []).buffer)]

export function walkCases(context: Context): void {
  const { image } = context
  const { structures: at } = image
  const walk = async (plan: WalkPlan): Promise<WalkResult> => {
    const [result] = await context.memory.walk([plan])
    if (result === undefined) throw new Error('no result')
    return result
  }
  const common = { space: image.five, limit: 100, columns: [value] } as const

  describe.each([
    ['4 levels', image.four],
    ['5 levels', image.five],
  ] as const)('walk of a list with %s', (_, space) => {
    it('gives every element and its columns', async () => {
      const columns: Column[] = [
        value,
        { path: [32], size: 9 },
        { path: [48, 0], size: 8 },
        // From the link's neighbour: a negative offset.
        { path: [16, -16], size: 8 },
      ]
      const result = await walk({ kind: 'list', space, head: at.list, node: 16, columns, limit: 100 })
      expect(result).toMatchObject({ rows: 5, end: 'complete' })
      expect(result.fault).toBeUndefined()
      expect([...result.addresses]).toEqual(at.elements)
      expect(words(result.columns[0])).toEqual([100n, 101n, 102n, 103n, 104n])
      expect(Buffer.from(result.columns[1] ?? []).toString('latin1')).toBe(
        [0, 1, 2, 3, 4].map((i) => `element-${i}`).join(''),
      )
      expect(words(result.columns[2])).toEqual([0x7a1een, 0n, 0n, 0x7a1een, 0x7a1een])
      // The next element's value; the last one's link leads to the head, whose neighbour is no element.
      expect(words(result.columns[3]).slice(0, 4)).toEqual([101n, 102n, 103n, 104n])
      const cells = Array.from({ length: 5 }, (_row, i) => [...result.cells.slice(i * 4, i * 4 + 4)])
      expect(cells.map((row) => row[2])).toEqual([OK, NULL, FAULT, OK, OK])
      expect(cells.map((row) => row[0])).toEqual([OK, OK, OK, OK, OK])
    })
  })

  describe('walk', () => {
    it('takes several plans at once, of several kinds', async () => {
      const results = await context.memory.walk([
        { ...common, kind: 'list', head: at.list, node: 16 },
        { ...common, kind: 'list', head: at.emptyList, node: 16 },
        { ...common, kind: 'rbtree', head: at.rbtree, node: 8 },
      ])
      expect(results.map(({ rows, end }) => [rows, end])).toEqual([
        [5, 'complete'],
        [0, 'complete'],
        [11, 'complete'],
      ])
    })

    it('walks without columns', async () => {
      const result = await walk({ ...common, columns: [], kind: 'list', head: at.list, node: 16 })
      expect(result).toMatchObject({ rows: 5, columns: [], end: 'complete' })
      expect(result.cells).toHaveLength(0)
    })

    it('ends at its limit only if there was more', async () => {
      const plan = { ...common, kind: 'list', head: at.list, node: 16 } as const
      expect(await walk({ ...plan, limit: 5 })).toMatchObject({ rows: 5, end: 'complete' })
      const cut = await walk({ ...plan, limit: 4 })
      expect(cut).toMatchObject({ rows: 4, end: 'limit' })
      expect([...cut.addresses]).toEqual(at.elements.slice(0, 4))
    })

    it('joins long results in order', async () => {
      const result = await walk({ ...common, kind: 'list', head: at.longList, node: 0, limit: LIMITS.walkRows })
      expect(result).toMatchObject({ rows: at.longCount, end: 'complete' })
      const expected = Array.from({ length: at.longCount }, (_, i) => VA.direct + PA.long + BigInt(i) * 16n)
      expect([...result.addresses]).toEqual(expected)
      expect(words(result.columns[0])).toEqual([...expected.slice(1), at.longList])
      expect(result.cells).toEqual(new Uint8Array(at.longCount))
    })

    it('notices a list that returns into itself, and gives each element once', async () => {
      const plan = { ...common, kind: 'list', node: 16, limit: LIMITS.walkRows } as const
      const cyclic = await walk({ ...plan, head: at.cyclicList })
      expect(cyclic).toMatchObject({ rows: 3, end: 'cycle' })
      expect([...cyclic.addresses]).toEqual(at.cyclicElements)
      expect(words(cyclic.columns[0])).toHaveLength(3)
      expect(await walk({ ...plan, head: at.selfList })).toMatchObject({ rows: 1, end: 'cycle' })
    })

    it('ends with a fault at a link that leads nowhere, after good rows', async () => {
      const wild = await walk({ ...common, kind: 'list', head: at.wildList, node: 16 })
      expect(wild).toMatchObject({ rows: 2, end: 'fault', fault: { reason: 'not-present', address: at.wildAddress } })
      const nothing = await walk({ ...common, kind: 'list', head: at.nullList, node: 16 })
      expect(nothing).toMatchObject({ rows: 2, end: 'fault', fault: { address: 0n } })
      const head = await walk({ ...common, kind: 'list', head: VA.noRoot, node: 16 })
      expect(head).toMatchObject({ rows: 0, end: 'fault', fault: { reason: 'not-present', address: VA.noRoot } })
    })

    it('follows hlists to null or to a nulls mark', async () => {
      const plan = { ...common, kind: 'hlist', node: 16 } as const
      expect(await walk({ ...plan, head: at.hlist })).toMatchObject({ rows: 4, end: 'complete' })
      expect(await walk({ ...plan, head: at.nullsHlist })).toMatchObject({ rows: 2, end: 'complete' })
      expect(await walk({ ...plan, head: at.cyclicHlist })).toMatchObject({ rows: 2, end: 'cycle' })
      const wild = await walk({ ...plan, head: at.wildHlist })
      expect(wild).toMatchObject({ rows: 2, end: 'fault', fault: { address: at.wildAddress } })
    })

    it('goes over the chains of a hash table', async () => {
      const plan = { ...common, kind: 'hash', head: at.hash, node: 16 } as const
      const whole = await walk({ ...plan, count: 8 })
      expect(whole).toMatchObject({ rows: 6, end: 'complete' })
      expect([...whole.addresses]).toEqual(at.hashElements)
      expect(await walk({ ...plan, count: 4 })).toMatchObject({ rows: 4, end: 'complete' })
      expect(await walk({ ...plan, count: 0 })).toMatchObject({ rows: 0, end: 'complete' })
      expect(await walk({ ...plan, count: 8, limit: 2 })).toMatchObject({ rows: 2, end: 'limit' })
    })

    it('gives a red-black tree in order', async () => {
      const plan = { ...common, kind: 'rbtree', node: 8 } as const
      const tree = await walk({ ...plan, head: at.rbtree })
      expect(tree).toMatchObject({ rows: 11, end: 'complete' })
      expect([...tree.addresses]).toEqual(at.rbElements)
      expect(words(tree.columns[0])).toEqual(at.rbElements.map((_, i) => BigInt(200 + i)))
      expect(await walk({ ...plan, head: at.emptyTree })).toMatchObject({ rows: 0, end: 'complete' })
      expect(await walk({ ...plan, head: at.leftCycle })).toMatchObject({ rows: 0, end: 'cycle' })
      expect(await walk({ ...plan, head: at.rightCycle })).toMatchObject({ rows: 1, end: 'cycle' })
      expect(await walk({ ...plan, head: at.wildTree })).toMatchObject({ rows: 1, end: 'fault' })
    })

    it('gives the pointers of an xarray in the order of indexes', async () => {
      const plan = { ...common, kind: 'xarray', shiftOffset: 0, slotsOffset: 40, slots: 16 } as const
      const tree = await walk({ ...plan, head: at.xarray })
      expect(tree).toMatchObject({ rows: 4, end: 'complete' })
      expect([...tree.addresses]).toEqual(at.xaElements)
      expect(words(tree.columns[0])).toEqual([100n, 101n, 102n, 103n])
      expect(await walk({ ...plan, head: at.xaEmpty })).toMatchObject({ rows: 0, end: 'complete' })
      const single = await walk({ ...plan, head: at.xaSingle })
      expect([...single.addresses]).toEqual([at.xaElements[1]])
      expect(await walk({ ...plan, head: at.xaCycle })).toMatchObject({ rows: 1, end: 'cycle' })
    })

    it('ends in an xarray of 16^15 empty paths', async () => {
      const plan = { ...common, kind: 'xarray', shiftOffset: 0, slotsOffset: 40, slots: 16 } as const
      expect(await walk({ ...plan, head: at.xaShared })).toMatchObject({ rows: 0, end: 'limit' })
    })

    it('goes over arrays of elements and of pointers', async () => {
      const elements = await walk({ ...common, kind: 'array', head: VA.large, count: 300, stride: 24, limit: 1000 })
      expect(elements).toMatchObject({ rows: 300, end: 'complete' })
      expect(elements.addresses[299]).toBe(VA.large + 299n * 24n)
      const plan = { ...common, kind: 'array', head: at.pointers, count: 5, stride: 8, pointers: true } as const
      const pointed = await walk(plan)
      expect(pointed).toMatchObject({ rows: 4, end: 'complete' })
      expect(words(pointed.columns[0])).toEqual([100n, 102n, 0n, 104n])
      expect([...pointed.cells]).toEqual([OK, OK, FAULT, OK])
      expect(await walk({ ...plan, limit: 2 })).toMatchObject({ rows: 2, end: 'limit' })
    })

    it('walks the same synchronously', async () => {
      const { sync } = context.memory
      if (sync === undefined) return
      const plans: WalkPlan[] = [
        { ...common, kind: 'list', head: at.list, node: 16 },
        { ...common, kind: 'list', head: at.wildList, node: 16 },
        { ...common, kind: 'list', head: at.longList, node: 0, limit: 20_000 },
      ]
      expect(sync.walk(plans)).toEqual(await context.memory.walk(plans))
    })

    it.each([
      ['rows', { limit: LIMITS.walkRows + 1 }],
      ['columns', { columns: Array(LIMITS.columns + 1).fill(value) }],
      ['bytes of a column', { columns: [{ path: [0], size: LIMITS.columnSize + 1 }] }],
      ['hops of a column', { columns: [{ path: Array(LIMITS.pathLength + 1).fill(0), size: 8 }] }],
    ])('refuses too many %s', async (_, part) => {
      const plan = { ...common, kind: 'list', head: at.list, node: 16, ...part } as const
      await expect(context.memory.walk([plan])).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT' })
    })

    it.each([
      ['limit 0', { limit: 0 }],
      ['an empty path', { columns: [{ path: [], size: 8 }] }],
      ['a column of no size', { columns: [{ path: [0], size: 0 }] }],
      ['a node that is no integer', { node: 0.5 }],
    ])('refuses %s', async (_, part) => {
      const plan = { ...common, kind: 'list', head: at.list, node: 16, ...part } as const
      await expect(context.memory.walk([plan])).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    })
  })
}
