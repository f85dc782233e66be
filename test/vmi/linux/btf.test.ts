import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { CloudAppError } from '../../../src/errors.js'
import { scanBtf } from '../../../src/vmi/linux/btf.js'
import { encodeTypes, TypeTable } from '../../../src/vmi/linux/types.js'
import { BtfBuilder } from './encode.js'

const open = (blob: Buffer) => TypeTable.open(encodeTypes(scanBtf(blob), 3))

function sample(): { btf: BtfBuilder; int: number } {
  const btf = new BtfBuilder()
  const int = btf.int('unsigned int', 4)
  const long = btf.int('unsigned long', 8)
  const node = btf.struct('node', 16, [
    { name: 'next', type: btf.pointer(long), bit: 0 },
    { name: 'prev', type: btf.pointer(long), bit: 64 },
  ])
  const part = btf.struct('part', 24, [
    { name: 'base', type: long, bit: 0 },
    { name: 'size', type: int, bit: 64 },
    { name: 'link', type: btf.typedef('node_t', btf.record(10, '', 0, node)), bit: 64 + 32 },
  ])
  const anonymous = btf.struct(
    '',
    8,
    [
      { name: 'as_long', type: long, bit: 0 },
      { name: '', type: btf.struct('', 8, [{ name: 'deep', type: int, bit: 32 }]), bit: 0 },
    ],
    true,
  )
  btf.struct('outer', 256, [
    { name: 'flags', type: int, bit: 0, width: 0 },
    { name: 'low', type: int, bit: 35, width: 3 },
    { name: '', type: anonymous, bit: 64 },
    { name: 'parts', type: btf.array(part, 4), bit: 128 },
    { name: 'owner', type: btf.pointer(part), bit: 1024 },
  ])
  btf.enumeration('colour', { RED: 0, BLUE: 7 })
  btf.enumeration('level', { LOW: -1, HIGH: 1 }, true)
  btf.enumeration64('wide', { BIG: 0x1_2345_6789n })
  return { btf, int }
}

describe('types from BTF', () => {
  const types = open(sample().btf.bytes())

  it('finds members, also in anonymous structs and unions, through typedefs and in arrays', () => {
    expect(types.offset('outer.as_long')).toBe(8)
    expect(types.offset('outer.deep')).toBe(12)
    expect(types.offset('outer.parts')).toBe(16)
    expect(types.offset('outer.parts[2].link.prev')).toBe(16 + 48 + 12 + 8)
    expect(types.sizeOf('outer')).toBe(256)
    expect(types.sizeOf('struct outer')).toBe(256)
    expect(types.sizeOf('outer.parts')).toBe(96)
    expect(types.sizeOf('outer.owner')).toBe(8)
    expect(types.has('outer.parts[2].size')).toBe(true)
    expect(types.has('outer.nothing')).toBe(false)
    expect(types.has('nothing')).toBe(false)
  })

  it('gives bitfields by bit', () => {
    expect(types.field('outer.low')).toEqual({ offset: 4, size: 4, bits: { first: 3, width: 3 } })
  })

  it('lists members in place', () => {
    expect(types.members('outer').map(({ name, offset }) => [name, offset])).toEqual([
      ['flags', 0],
      ['low', 4],
      ['as_long', 8],
      ['deep', 12],
      ['parts', 16],
      ['owner', 128],
    ])
  })

  it('reads enumerators of all widths and signs', () => {
    expect(types.enumerator('colour', 'BLUE')).toBe(7n)
    expect(types.enumerator('level', 'LOW')).toBe(-1n)
    expect(types.enumerator('wide', 'BIG')).toBe(0x1_2345_6789n)
    expect(types.enumerator('colour', 'GREEN')).toBeUndefined()
  })

  it.each([
    ['outer.nothing', /struct outer has no member "nothing"/],
    ['nothing.at.all', /no type "nothing"/],
    ['outer.owner.base', /pointers are not followed/],
    ['outer.parts[4].base', /has 4 elements/],
    ['outer.flags[0]', /is no array/],
  ])('says what is missing of %s', (path, message) => {
    expect(() => types.offset(path)).toThrow(message)
    expect(() => types.offset(path)).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_PROFILE' }))
  })

  it.each(['outer..x', 'outer[x]', '', 'outer.', 'a'.repeat(1000)])('refuses the path "%s"', (path) => {
    expect(() => types.has(path)).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' }))
  })
})

describe('hostile BTF', () => {
  const refused = (blob: Buffer, message: RegExp) => {
    expect(() => open(blob)).toThrow(message)
    expect(() => open(blob)).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_PROFILE' }))
  }
  const patched = (at: number, value: number) => {
    const blob = sample().btf.bytes()
    blob.writeUInt32LE(value >>> 0, at)
    return blob
  }

  it('refuses headers that point outside', () => {
    refused(patched(0, 0x0001_9feb), /magic/)
    refused(patched(0, 0x0002_eb9f), /version 2/)
    refused(patched(8, 0x7fff_ffff), /places types at/)
    refused(patched(12, 0xffff_fff0), /places types at/)
    refused(patched(16, 0xffff_fff0), /strings at/)
    refused(patched(20, 0xffff_fff0), /strings at/)
    refused(Buffer.alloc(10), /no BTF header/)
  })

  it('names an unknown kind, and a record that runs out', () => {
    const unknown = new BtfBuilder()
    unknown.int('int', 4)
    unknown.record(42, 'odd', 0, 0)
    refused(unknown.bytes(), /type 2 .* unknown kind 42/)
    const long = new BtfBuilder()
    long.record(4, 'long', 60_000, 8, [1, 1, 0])
    refused(long.bytes(), /runs past the end/)
  })

  it('refuses names outside the strings', () => {
    const blob = sample().btf.bytes()
    blob.writeUInt32LE(0x00ff_ffff, 24)
    refused(blob, /has its name at/)
  })

  it('ends types that refer to themselves', () => {
    const btf = new BtfBuilder()
    btf.typedef('loop', 1)
    btf.array(2, 3)
    btf.struct('user', 8, [
      { name: 'a', type: 1, bit: 0 },
      { name: 'b', type: 2, bit: 0 },
      { name: 'c', type: 777, bit: 0 },
    ])
    const anonymous = btf.struct('nest', 8, [{ name: '', type: 4, bit: 0 }])
    expect(anonymous).toBe(4)
    const types = open(btf.bytes())
    expect(() => types.offset('user.a')).toThrow(/refers to itself/)
    expect(() => types.offset('user.b')).toThrow(/array of itself|1 TiB/)
    expect(() => types.offset('user.c')).toThrow(/outside 1…4/)
    expect(() => types.offset('nest.x')).toThrow(/nested more than/)
  })

  it('ends an exponential tree of anonymous structs', () => {
    const btf = new BtfBuilder()
    const int = btf.int('int', 4)
    let inner = btf.struct('', 4, [{ name: 'leaf', type: int, bit: 0 }])
    for (let depth = 0; depth < 13; depth++) {
      inner = btf.struct(
        depth === 12 ? 'tree' : '',
        4,
        Array.from({ length: 16 }, () => ({ name: '', type: inner, bit: 0 })),
      )
    }
    expect(() => open(btf.bytes()).has('tree.absent')).toThrow(/more than 200000 members/)
  })

  it('answers any mutation with a result or a profile error', () => {
    const blob = sample().btf.bytes()
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(blob.length - 1), fc.nat(255)), { minLength: 1, maxLength: 8 }),
        (changes) => {
          const mutated = Buffer.from(blob)
          for (const [at, value] of changes) mutated[at] = value
          try {
            const types = open(mutated)
            types.has('outer.parts[2].link.prev')
            types.members('outer')
            types.enumerator('wide', 'BIG')
          } catch (error) {
            if (!CloudAppError.is(error, 'ERR_CLOUDAPP_PROFILE')) throw error
          }
        },
      ),
      { numRuns: 2000 },
    )
  })
})
