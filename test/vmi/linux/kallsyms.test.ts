import fc from 'fast-check'
import { describe, expect, it, vi } from 'vitest'
import { CloudAppError } from '../../../src/errors.js'
import { SymbolTable } from '../../../src/vmi/linux/symbols.js'
import type { KallsymsLayout, SymbolSpec } from './encode.js'
import { parse, TEXT, tinyImage } from './image.js'

// Property runs take their time.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const LAYOUTS: KallsymsLayout[] = ['5.10', '6.2', '6.4', '7.0']

const many: SymbolSpec[] = Array.from({ length: 900 }, (_, i) => ({
  // The last one is longer than one length byte tells (6.1 and later).
  name: i === 899 ? `very_${'long_name_'.repeat(30)}end` : `sys_task_${i}`,
  letter: 'tTdD'[i % 4] as string,
  value: TEXT + BigInt(16 * (i + 1)),
}))

describe.each(LAYOUTS)('kallsyms as in Linux %s', (layout) => {
  for (const perCpu of layout === '7.0' ? [false] : [false, true]) {
    const image = tinyImage(layout, { symbols: many, perCpu })

    it.each([
      ['named by VMCOREINFO', image.job],
      ['found by shape', image.unnamed],
    ])(`reads the tables ${perCpu ? 'with absolute per-CPU symbols ' : ''}%s`, (_, job) => {
      const { image: facts, symbols } = parse(image, job)
      expect(facts.release).toBe('6.9.9-test')
      expect(facts.buildId).toBe('00112233445566778899aabbccddeeff01234567')
      expect(image.bytes.toString('hex', facts.buildIdOffset, facts.buildIdOffset + 20)).toBe(facts.buildId)
      expect(facts.textPosition).toBe(0)
      expect(facts.symbols.init_task).toBe(0x40_0000)
      expect(facts.symbols.modules).toBeNull()
      expect(facts.fields['task_struct.comm']).toEqual([32, 16])
      expect(facts.fields['task_struct.mm']).toBeNull()
      const table = SymbolTable.open(symbols, TEXT)
      for (const { name, letter, value } of many) {
        expect(table.get(name)).toBe(value)
        expect(table.at(value + 3n)).toMatchObject({ name, type: letter, offset: 3n })
      }
      expect(table.find('runqueues')).toBe(perCpu ? 0x31c40n : undefined)
      if (perCpu) expect(facts.symbols.runqueues).toEqual([0x31c40])
      expect(table.at(0x31c40n)).toBeUndefined()
    })
  }

  it('finds the image from physical positions alone', () => {
    const image = tinyImage(layout, { symbols: many })
    const { virtual: _, ...physical } = image.unnamed
    const moved = Buffer.concat([Buffer.alloc(0x60_0000, 0x41), image.bytes])
    const digits = image.unnamed.digits.map((at) => at + 0x60_0000)
    // Place-relative offsets hold wherever the image lies; the others need the banner at a 2 MiB step.
    const { image: facts } = parse({ bytes: moved }, { ...physical, size: moved.length, digits })
    expect(facts.textPosition).toBe(0x60_0000)
  })
})

describe('hostile kallsyms', () => {
  const image = tinyImage('6.4', { symbols: many })
  const refused = (job: typeof image.job, bytes: Buffer, message: RegExp) => {
    expect(() => parse({ bytes }, job)).toThrow(message)
    expect(() => parse({ bytes }, job)).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_PROFILE' }))
  }
  const { tables } = image.job
  if (tables === undefined) throw new Error('the test image names its tables')

  it('refuses a token table without ends', () => {
    const bytes = Buffer.from(image.bytes)
    bytes.fill(0x61, tables.tokenTable, tables.tokenIndex)
    refused(image.job, bytes, /token table/)
  })

  it('bounds what a name expands to', () => {
    const bytes = Buffer.from(image.bytes)
    // One token that fills the table, and a name that repeats it.
    bytes.fill(0, tables.tokenTable, tables.tokenIndex)
    bytes.fill(0x61, tables.tokenTable, tables.tokenIndex - 256)
    bytes.fill(0, tables.tokenIndex, tables.tokenIndex + 512)
    const length = tables.tokenIndex - 256 - tables.tokenTable
    for (let i = 1; i < 256; i++) bytes.writeUInt16LE(length + i, tables.tokenIndex + 2 * i)
    bytes.fill(0, tables.names, tables.names + 400)
    bytes[tables.names] = 0xff
    bytes[tables.names + 1] = 0x02
    refused(image.job, bytes, /longer than 1024 bytes/)
  })

  it('bounds the number of symbols', () => {
    const bytes = Buffer.from(image.bytes)
    bytes.writeUInt32LE(0xffff_fff0, tables.numSyms)
    refused(image.job, bytes, /4294967280 symbols/)
    bytes.writeUInt32LE(1_900_000, tables.numSyms)
    refused(image.job, bytes, /has no length|runs past the table/)
    bytes.writeUInt32LE(0, tables.numSyms)
    refused(image.job, bytes, /0 symbols/)
  })

  it('refuses tables outside the image', () => {
    refused({ ...image.job, tables: { ...tables, offsets: image.bytes.length - 8 } }, image.bytes, /outside the/)
    refused({ ...image.job, tables: { ...tables, numSyms: image.bytes.length - 2 } }, image.bytes, /outside the/)
  })

  it('names the part when there is nothing', () => {
    const bytes = Buffer.alloc(4 * 1024 * 1024)
    refused({ size: bytes.length, digits: [], seed: 1 }, bytes, /VMCOREINFO names no tables/)
    refused({ size: bytes.length, digits: [4096, bytes.length - 4], seed: 1 }, bytes, /shape of a token table/)
  })

  it('says what a kernel without BTF, or without data symbols, lacks', () => {
    const bytes = Buffer.from(image.bytes)
    bytes.fill(0, 0x21_0000, 0x21_0100)
    refused(image.job, bytes, /BTF: magic/)
    const bare = tinyImage('6.4', { btf: Buffer.alloc(0) })
    refused(bare.job, bare.bytes, /__start_BTF to __stop_BTF are 0 bytes/)
  })

  it('answers any mutation with a result or a profile error', () => {
    const small = tinyImage('5.10', { symbols: many.slice(0, 20) })
    const start = 0x28_0000
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(3000), fc.nat(255)), { minLength: 1, maxLength: 6 }),
        fc.boolean(),
        (changes, named) => {
          const bytes = Buffer.from(small.bytes)
          for (const [at, value] of changes) bytes[start + at] = value
          try {
            parse({ bytes }, named ? small.job : small.unnamed)
          } catch (error) {
            if (!CloudAppError.is(error, 'ERR_CLOUDAPP_PROFILE')) throw error
          }
        },
      ),
      { numRuns: 150 },
    )
  })
})
