import { expect, test } from 'vitest'
import { RangeMap } from '../../../../src/vmi/linux/integrity/ranges.js'

test('finds the innermost range, and gaps between ranges', () => {
  const map = new RangeMap([
    { start: 30n, end: 40n, value: 'c' },
    { start: 0n, end: 20n, value: 'a' },
    { start: 5n, end: 8n, value: 'b' },
    { start: 9n, end: 9n, value: 'empty' },
  ])
  expect(map.at(4n)?.value).toBe('a')
  expect(map.at(7n)?.value).toBe('b')
  expect(map.at(19n)?.value).toBe('a')
  expect(map.at(20n)).toBeUndefined()
  expect(map.at(35n)?.value).toBe('c')
  expect([...map.gaps(10n, 50n)]).toEqual([
    { start: 20n, end: 30n },
    { start: 40n, end: 50n },
  ])
  expect([...map.gaps(1n, 19n)]).toEqual([])
  expect([...new RangeMap([]).gaps(1n, 2n)]).toEqual([{ start: 1n, end: 2n }])
})
