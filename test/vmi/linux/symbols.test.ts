import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { CloudAppError } from '../../../src/errors.js'
import { encodeSymbols, SymbolTable } from '../../../src/vmi/linux/symbols.js'

interface Spec {
  name: string
  offset: number
  absolute: boolean
}

function encode(specs: readonly Spec[], seed = 1): Uint8Array {
  const sorted = [...specs].sort((a, b) => Number(b.absolute) - Number(a.absolute) || a.offset - b.offset)
  const names = Buffer.from(sorted.map(({ name }) => name).join(''))
  const starts = new Uint32Array(sorted.length + 1)
  for (const [i, { name }] of sorted.entries()) starts[i + 1] = (starts[i] as number) + Buffer.byteLength(name)
  const count = sorted.length
  const columns = {
    count,
    offsets: Int32Array.from(sorted, ({ offset }) => offset),
    absolute: Uint8Array.from(sorted, ({ absolute }) => Number(absolute)),
    letters: new Uint8Array(count).fill(0x54),
    starts,
    names,
  }
  return encodeSymbols(columns, seed)
}

const BASE = 0xffff_ffff_a000_0000n

describe('the symbol table', () => {
  it('finds every symbol by name and by address, whatever they are', () => {
    const spec = fc.record({
      name: fc.string({ minLength: 1, maxLength: 12 }),
      offset: fc.integer({ min: 0, max: 1 << 24 }),
      absolute: fc.boolean(),
    })
    fc.assert(
      fc.property(fc.array(spec, { minLength: 1, maxLength: 60 }), fc.integer(), (specs, seed) => {
        const table = SymbolTable.open(encode(specs, seed), BASE)
        expect(table.size).toBe(specs.length)
        const value = ({ offset, absolute }: Spec) => (absolute ? BigInt(offset) : BASE + BigInt(offset))
        for (const wanted of specs) {
          expect(table.all(wanted.name).map(({ address }) => address)).toContain(value(wanted))
          const hit = table.at(BASE + BigInt(wanted.offset) + 1n)
          const below = specs.filter(({ absolute, offset }) => !absolute && offset <= wanted.offset + 1)
          if (below.length === 0) expect(hit).toBeUndefined()
          else expect(hit?.address).toBe(BASE + BigInt(Math.max(...below.map(({ offset }) => offset))))
        }
      }),
      { numRuns: 300 },
    )
  })

  it('says what is missing', () => {
    const table = SymbolTable.open(encode([{ name: '_text', offset: 0, absolute: false }]), BASE)
    expect(table.find('init_task')).toBeUndefined()
    expect(() => table.get('init_task')).toThrow(/no symbol "init_task" \(looked in 1 symbols of kallsyms\)/)
    expect(table.at(BASE - 1n)).toBeUndefined()
    expect(table.at(0n)).toBeUndefined()
    expect(table.at((1n << 64n) - 1n)).toMatchObject({ name: '_text' })
    expect(table.next(BASE)).toBeUndefined()
    expect(table.next(BASE - 5n)).toBe(BASE)
  })

  it('lists by prefix', () => {
    const specs = ['sys_a', 'sys_b', 'other'].map((name, i) => ({ name, offset: 16 * i, absolute: false }))
    const table = SymbolTable.open(encode(specs), BASE)
    expect([...table.startingWith('sys_')].map(({ name }) => name)).toEqual(['sys_a', 'sys_b'])
    expect([...table].map(({ name }) => name)).toEqual(['sys_a', 'sys_b', 'other'])
  })

  it('survives any damage to a section', () => {
    const specs = Array.from({ length: 40 }, (_, i) => ({ name: `name_${i}`, offset: i * 8, absolute: i < 5 }))
    const bytes = encode(specs)
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(bytes.length - 1), fc.nat(255)), { minLength: 1 }), (changes) => {
        const damaged = Uint8Array.from(bytes)
        for (const [at, value] of changes) damaged[at] = value
        try {
          const table = SymbolTable.open(damaged, BASE)
          table.all('name_7')
          table.at(BASE + 100n)
        } catch (error) {
          if (!CloudAppError.is(error)) throw error
        }
      }),
      { numRuns: 1000 },
    )
    expect(() => SymbolTable.open(bytes.subarray(0, 20), BASE)).toThrow(/truncated/)
    expect(() => SymbolTable.open(bytes.subarray(0, -1), BASE)).toThrow(/wrong length/)
  })
})
