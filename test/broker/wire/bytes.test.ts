import { describe, expect, it } from 'vitest'
import { type ByteReader, ByteWriter, decodeMessage } from '../../../src/broker/wire/bytes.js'

const LARGE = new Uint8Array(20_000).fill(7)
const SMALL = Uint8Array.of(1, 2, 3)
const NUMBERS = BigUint64Array.from({ length: 3000 }, (_, i) => BigInt(i))

function written(): Uint8Array[] {
  const writer = new ByteWriter()
  writer.u8(9)
  writer.large(LARGE)
  writer.large(SMALL)
  writer.large(NUMBERS)
  writer.u8(8)
  return writer.message()
}

const read = (reader: ByteReader) => [
  reader.u8(),
  reader.large(LARGE.length),
  reader.large(SMALL.length),
  reader.largeU64s(NUMBERS.length),
  reader.u8(),
]

describe('a message with large parts', () => {
  it('has them beside its table, uncopied, and reads as it was written', () => {
    const message = written()
    expect(message.map((part) => part.length)).toEqual([5, LARGE.length, NUMBERS.byteLength])
    expect(message[1]?.buffer).toBe(LARGE.buffer)
    expect(decodeMessage(message, read)).toEqual([9, LARGE, SMALL, NUMBERS, 8])
  })

  it.each<[string, (message: Uint8Array[]) => unknown]>([
    ['nothing', () => undefined],
    ['bytes instead of a list', ([table]) => table],
    ['an empty list', () => []],
    ['a part missing', (message) => message.slice(0, 2)],
    ['a part too many', (message) => [...message, SMALL]],
    ['parts in another order', ([table, first, second]) => [table, second, first]],
    ['a part cut short', ([table, first, second]) => [table, first?.subarray(1), second]],
    ['a part that is no bytes', ([table, , second]) => [table, 'x'.repeat(LARGE.length), second]],
    [
      'a large part in the table',
      ([table, first, second]) => [Buffer.concat([table as Uint8Array, LARGE]), first, second],
    ],
  ])('is refused with %s', (_, change) => {
    expect(() => decodeMessage(change(written()), read)).toThrow(
      expect.objectContaining({ code: 'ERR_CLOUDAPP_PROTOCOL' }),
    )
  })
})
