import { type Layout, SCALARS, TYPEDEFS, type TypeRef, type Types } from './types.js'

// include/uapi/linux/btf.h: kinds and integer encodings.
const KIND = {
  Int: 1,
  Ptr: 2,
  Array: 3,
  Struct: 4,
  Union: 5,
  Enum: 6,
  Fwd: 7,
  Typedef: 8,
  Func: 12,
  FuncProto: 13,
} as const
const KIND_VAR = 14
const KIND_DATASEC = 15
const ENCODING = { unsigned: 0, signed: 1, char: 1, bool: 4 } as const
const HEADER = 24

/** Something besides structs that a kernel's BTF holds. */
export interface BtfExtras {
  /** Enumerations by name. */
  readonly enums: Readonly<Record<string, Readonly<Record<string, number>>>>
  /** Functions (all of one prototype). */
  readonly functions: readonly string[]
  /** Per-CPU variables: name, struct, offset in the per-CPU area. */
  readonly percpu: readonly {
    readonly name: string
    readonly struct: string
    readonly offset: number
    readonly size: number
  }[]
}

/** Encodes a kernel's types as BTF. Source of the format: Documentation/bpf/btf.rst. */
export function encodeBtf(types: Types, extras: BtfExtras): Uint8Array {
  return new Encoder(types).encode(extras)
}

class Encoder {
  readonly #types: Types
  #enums: BtfExtras['enums'] = {}
  #used = 1
  #strings = Buffer.alloc(1)
  readonly #stringAt = new Map<string, number>([['', 0]])
  /** Records in the order of their ids, as words; an id is taken before its record is known, for cycles. */
  readonly #records: number[][] = []
  readonly #ids = new Map<string, number>()

  constructor(types: Types) {
    this.#types = types
  }

  encode(extras: BtfExtras): Uint8Array {
    this.#enums = extras.enums
    for (const name of Object.keys(SCALARS)) this.#base(name)
    for (const name of Object.keys(TYPEDEFS)) this.#base(name)
    for (const name of this.#types.names()) this.#base(`${this.#types.struct(name).kind} ${name}`)
    for (const name of Object.keys(extras.enums)) this.#base(`enum ${name}`)
    const proto = this.#proto()
    for (const name of extras.functions) {
      this.#records.push([this.#string(name), KIND.Func << 24, proto])
    }
    this.#percpu(extras.percpu)
    return this.#blob()
  }

  #blob(): Uint8Array {
    const words = this.#records.reduce((sum, record) => sum + record.length, 0)
    const strings = this.#strings.subarray(0, this.#used)
    const out = Buffer.alloc(HEADER + words * 4 + strings.byteLength)
    out.writeUInt16LE(0xeb9f, 0)
    out.writeUInt8(1, 2)
    out.writeUInt32LE(HEADER, 4)
    out.writeUInt32LE(0, 8)
    out.writeUInt32LE(words * 4, 12)
    out.writeUInt32LE(words * 4, 16)
    out.writeUInt32LE(strings.byteLength, 20)
    let at = HEADER
    for (const record of this.#records) {
      for (const word of record) {
        out.writeUInt32LE(word >>> 0, at)
        at += 4
      }
    }
    out.set(strings, at)
    return out
  }

  #string(text: string): number {
    const known = this.#stringAt.get(text)
    if (known !== undefined) return known
    const length = Buffer.byteLength(text) + 1
    if (this.#used + length > this.#strings.byteLength) {
      this.#strings = Buffer.concat([this.#strings, Buffer.alloc(Math.max(length, 65_536))])
    }
    const at = this.#used
    this.#strings.write(text, at)
    this.#used += length
    this.#stringAt.set(text, at)
    return at
  }

  /** Takes the next id for a record that follows. */
  #reserve(key: string): number {
    this.#records.push([])
    const id = this.#records.length
    this.#ids.set(key, id)
    return id
  }

  #base(base: string): number {
    const known = this.#ids.get(base)
    if (known !== undefined) return known
    if (base === 'void') return 0
    const id = this.#reserve(base)
    const scalar = SCALARS[base]
    const target = TYPEDEFS[base]
    if (scalar !== undefined) {
      const bits = scalar.size * 8
      this.#records[id - 1] = [
        this.#string(base),
        KIND.Int << 24,
        scalar.size,
        (ENCODING[scalar.encoding] << 24) | bits,
      ]
    } else if (target !== undefined) {
      const to = this.#base(target)
      this.#records[id - 1] = [this.#string(base), KIND.Typedef << 24, to]
    } else {
      const [kind, name] = base.split(' ') as [string, string]
      const values = kind === 'enum' ? this.#enums[name] : undefined
      if (values !== undefined) this.#records[id - 1] = this.#enum(name, values)
      else if (this.#types.has(name)) this.#fill(id, this.#types.struct(name))
      else this.#records[id - 1] = [this.#string(name), (KIND.Fwd << 24) | (kind === 'union' ? 0x8000_0000 : 0), 0]
    }
    return id
  }

  #ref(type: TypeRef): number {
    let id = type.base === 'fn' ? this.#proto() : this.#base(type.base)
    let key = type.base
    for (let i = 0; i < type.pointers; i++) {
      key = `${key} *`
      const known = this.#ids.get(key)
      const target = id
      id = known ?? this.#reserve(key)
      if (known === undefined) this.#records[id - 1] = [0, KIND.Ptr << 24, target]
    }
    for (const count of [...type.counts].reverse()) {
      key = `${key}[${count}]`
      const known = this.#ids.get(key)
      const element = id
      id = known ?? this.#reserve(key)
      const index = this.#base('long unsigned int')
      if (known === undefined) this.#records[id - 1] = [0, KIND.Array << 24, 0, element, index, count]
    }
    return id
  }

  #fill(id: number, layout: Layout): void {
    const kind = layout.kind === 'union' ? KIND.Union : KIND.Struct
    // kind_flag: member offsets carry the size of a bit-field in their high byte.
    const flagged = layout.members.some((m) => m.type.bits > 0)
    const info = ((flagged ? 0x8000_0000 : 0) | (kind << 24) | layout.members.length) >>> 0
    const record = [this.#string(layout.name), info, layout.size]
    for (const member of layout.members) {
      let type: number
      if (member.inline !== undefined) {
        this.#records.push([])
        type = this.#records.length
        this.#fill(type, member.inline)
      } else {
        type = this.#ref(member.type)
      }
      const offset = flagged ? (member.type.bits << 24) | member.bitOffset : member.bitOffset
      record.push(this.#string(member.name), type, offset)
    }
    this.#records[id - 1] = record
  }

  #enum(name: string, values: Readonly<Record<string, number>>): number[] {
    const record = [this.#string(name), ((KIND.Enum << 24) | Object.keys(values).length) >>> 0, 4]
    for (const [key, value] of Object.entries(values)) record.push(this.#string(key), value)
    return record
  }

  #proto(): number {
    const known = this.#ids.get('fn')
    if (known !== undefined) return known
    const id = this.#reserve('fn')
    const argument = this.#ref({ base: 'struct pt_regs', pointers: 1, counts: [], bits: 0 })
    this.#records[id - 1] = [0, (KIND.FuncProto << 24) | 1, this.#base('long int'), this.#string('regs'), argument]
    return id
  }

  #percpu(variables: BtfExtras['percpu']): void {
    if (variables.length === 0) return
    const section = [this.#string('.data..percpu'), ((KIND_DATASEC << 24) | variables.length) >>> 0, 0]
    let size = 0
    for (const { name, struct, offset, size: bytes } of variables) {
      this.#records.push([this.#string(name), KIND_VAR << 24, this.#base(struct), 1])
      section.push(this.#records.length, offset, bytes)
      size = Math.max(size, offset + bytes)
    }
    section[2] = size
    this.#records.push(section)
  }
}
