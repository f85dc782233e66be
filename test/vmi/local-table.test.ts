import { describe, expect, it } from 'vitest'
import { Table, words } from '../../src/vmi/local-table.js'

const WIDTHS = [8, 3, 1]

/** `count` rows from `first` on, in a buffer with room for more: what a crossing leaves. */
function crossing(first: number, count: number): Uint8Array {
  const bytes = new Uint8Array((count + 9) * 12).fill(0xee)
  const view = new DataView(bytes.buffer)
  for (let row = 0; row < count; row++) {
    view.setBigUint64(row * 8, BigInt(first + row), true)
    bytes.fill((first + row) % 251, count * 8 + row * 3, count * 8 + row * 3 + 3)
    bytes[count * 11 + row] = (first + row) % 7
  }
  return bytes
}

describe('a table that comes some rows at a time', () => {
  it.each([
    ['nothing', []],
    ['one crossing', [5]],
    ['a few small ones', [1, 1, 3]],
    ['more than a part holds', [10, 30_000, 0, 17, 22_000, 40_000]],
  ])('is whole and in order: %s', (_, counts) => {
    const table = new Table(WIDTHS)
    let total = 0
    for (const count of counts) {
      table.add(crossing(total, count), count)
      total += count
    }
    expect(table.rows).toBe(total)
    while (!table.join());
    expect(table.whole).toBe(true)
    const [first, second, third] = table.columns()
    expect([first?.length, second?.length, third?.length]).toEqual([total * 8, total * 3, total])
    const numbers = words(first as Uint8Array)
    for (let row = 0; row < total; row++) {
      const bytes = [second?.[row * 3], second?.[row * 3 + 2], third?.[row]]
      if (numbers[row] !== BigInt(row) || String(bytes) !== String([row % 251, row % 251, row % 7])) {
        expect([row, numbers[row], bytes]).toEqual([row, BigInt(row), [row % 251, row % 251, row % 7]])
      }
    }
    expect(table.columns(Math.min(total, 2)).map((column) => column.length)).toEqual(
      WIDTHS.map((width) => width * Math.min(total, 2)),
    )
  })

  it('is joined in steps of a bounded size', () => {
    const table = new Table(WIDTHS)
    for (let i = 0; i < 100; i++) table.add(crossing(i * 1000, 1000), 1000)
    let steps = 1
    while (!table.join()) steps++
    expect(steps).toBeGreaterThanOrEqual(Math.floor((100_000 * 12) / (256 * 1024)))
  })
})
