import { profileError } from './errors.js'

/** BTF type kinds. Source: include/uapi/linux/btf.h, BTF_KIND_*. */
export const BtfKind = {
  Void: 0,
  Int: 1,
  Ptr: 2,
  Array: 3,
  Struct: 4,
  Union: 5,
  Enum: 6,
  Fwd: 7,
  Typedef: 8,
  Volatile: 9,
  Const: 10,
  Restrict: 11,
  Func: 12,
  FuncProto: 13,
  Var: 14,
  Datasec: 15,
  Float: 16,
  DeclTag: 17,
  TypeTag: 18,
  Enum64: 19,
} as const

/** Bytes after the common 12 of a record: a fixed part, and one part for each of `vlen` elements. */
const RECORD: readonly (readonly [fixed: number, element: number] | undefined)[] = [
  undefined,
  [4, 0], // INT: encoding
  [0, 0],
  [12, 0], // ARRAY: struct btf_array
  [0, 12], // STRUCT: struct btf_member
  [0, 12],
  [0, 8], // ENUM: struct btf_enum
  [0, 0],
  [0, 0],
  [0, 0],
  [0, 0],
  [0, 0],
  [0, 0],
  [0, 8], // FUNC_PROTO: struct btf_param
  [4, 0], // VAR: linkage
  [0, 12], // DATASEC: struct btf_var_secinfo
  [0, 0],
  [4, 0], // DECL_TAG: component_idx
  [0, 0],
  [0, 12], // ENUM64: struct btf_enum64
]

const COMMON = 12
/** More types than any kernel has (Debian 6.1: 134,000). */
const MAX_TYPES = 4_000_000
/** typedef, const, volatile, restrict and type tags in a row. */
const MAX_CHAIN = 64
const MAX_NAME = 1024

/** One member of a struct or union as BTF has it. */
export interface BtfMember {
  readonly nameOffset: number
  readonly type: number
  readonly bitOffset: number
  /** Width of a bitfield, 0 for an ordinary member. */
  readonly bitSize: number
}

/**
 * BTF records read in place. Every access is checked: BTF comes from the guest.
 */
export class Btf {
  /** Number of types, void (id 0) included. */
  readonly count: number
  readonly strings: Buffer
  readonly #types: Buffer
  readonly #offsets: Uint32Array

  /** `offsets[id]` is where record `id` starts in `types`; entry `count` is the end. */
  constructor(types: Uint8Array, strings: Uint8Array, offsets: Uint32Array) {
    this.#types = Buffer.from(types.buffer, types.byteOffset, types.byteLength)
    this.strings = Buffer.from(strings.buffer, strings.byteOffset, strings.byteLength)
    this.#offsets = offsets
    this.count = offsets.length - 1
  }

  #record(id: number): number {
    const at = this.#offsets[id]
    if (id <= 0 || id >= this.count || at === undefined || at + COMMON > this.#types.length)
      throw profileError('BTF', `type id ${id} is outside 1…${this.count - 1}`)
    return at
  }

  #word(at: number): number {
    if (at + 4 > this.#types.length) throw profileError('BTF', `record at ${at} runs past the end of the types`)
    return this.#types.readUInt32LE(at)
  }

  kind(id: number): number {
    return id === 0 ? BtfKind.Void : (this.#word(this.#record(id) + 4) >>> 24) & 0x7f
  }

  nameOffset(id: number): number {
    return id === 0 ? 0 : this.#word(this.#record(id))
  }

  /** Elements a record has: members, enumerators, parameters. */
  length(id: number): number {
    return this.#word(this.#record(id) + 4) & 0xff_ffff
  }

  /** kind_flag: bitfields in a struct, signedness of an enum, union for a forward declaration. */
  flag(id: number): boolean {
    return this.#word(this.#record(id) + 4) >>> 31 === 1
  }

  /** The size of a sized kind, or the type id a modifier, pointer, function or variable refers to. */
  sizeOrType(id: number): number {
    return this.#word(this.#record(id) + 8)
  }

  /** Word `index` after the common part. */
  extra(id: number, index: number): number {
    const at = this.#record(id) + COMMON + 4 * index
    if (at + 4 > (this.#offsets[id + 1] as number)) throw profileError('BTF', `type id ${id} has no word ${index}`)
    return this.#word(at)
  }

  member(id: number, index: number): BtfMember {
    const offset = this.extra(id, 3 * index + 2)
    const flag = this.flag(id)
    return {
      nameOffset: this.extra(id, 3 * index),
      type: this.extra(id, 3 * index + 1),
      bitOffset: flag ? offset & 0xff_ffff : offset,
      bitSize: flag ? offset >>> 24 : 0,
    }
  }

  /** The string at an offset; "" for anonymous. */
  string(offset: number): string {
    if (offset === 0) return ''
    if (offset >= this.strings.length)
      throw profileError('BTF', `name offset ${offset} is past the ${this.strings.length} bytes of strings`)
    const end = this.strings.indexOf(0, offset)
    if (end < 0 || end - offset > MAX_NAME)
      throw profileError('BTF', `the name at string offset ${offset} does not end within ${MAX_NAME} bytes`)
    return this.strings.toString('utf8', offset, end)
  }

  name(id: number): string {
    return this.string(this.nameOffset(id))
  }

  /** Strips typedefs, qualifiers and type tags. @throws ERR_CLOUDAPP_PROFILE on a chain that does not end. */
  strip(id: number): number {
    let type = id
    for (let i = 0; i < MAX_CHAIN; i++) {
      switch (this.kind(type)) {
        case BtfKind.Typedef:
        case BtfKind.Volatile:
        case BtfKind.Const:
        case BtfKind.Restrict:
        case BtfKind.TypeTag:
          type = this.sizeOrType(type)
          break
        default:
          return type
      }
    }
    throw profileError(
      'BTF',
      `type ${id} ("${this.name(id)}") refers to itself, or through more than ${MAX_CHAIN} names`,
    )
  }

  /** Size in bytes of a type. @throws ERR_CLOUDAPP_PROFILE for one that has none. */
  sizeOf(id: number): number {
    let factor = 1
    let type = id
    for (let i = 0; i < MAX_CHAIN; i++) {
      type = this.strip(type)
      switch (this.kind(type)) {
        case BtfKind.Ptr:
          return 8 * factor
        case BtfKind.Array:
          factor *= this.extra(type, 2)
          if (factor > 2 ** 40) throw profileError('BTF', `type ${id} is larger than 1 TiB`)
          type = this.extra(type, 0)
          break
        case BtfKind.Int:
        case BtfKind.Struct:
        case BtfKind.Union:
        case BtfKind.Enum:
        case BtfKind.Enum64:
        case BtfKind.Float:
        case BtfKind.Datasec:
          return this.sizeOrType(type) * factor
        case BtfKind.Var:
          type = this.sizeOrType(type)
          break
        default:
          throw profileError('BTF', `type ${id} ("${this.name(id)}", kind ${this.kind(type)}) has no size`)
      }
    }
    throw profileError('BTF', `type ${id} is an array of itself`)
  }
}

/** What {@link scanBtf} found: the parts of a BTF blob, and where each record starts. */
export interface BtfParts {
  readonly types: Uint8Array
  readonly strings: Uint8Array
  readonly offsets: Uint32Array
}

/**
 * Splits a BTF blob and finds its records, checking that each lies inside.
 * @throws ERR_CLOUDAPP_PROFILE naming what is wrong and where
 */
export function scanBtf(blob: Uint8Array): BtfParts {
  const view = Buffer.from(blob.buffer, blob.byteOffset, blob.byteLength)
  const bad = (what: string) => profileError('BTF', what)
  if (view.length < 24) throw bad(`${view.length} bytes are no BTF header`)
  if (view.readUInt16LE(0) !== 0xeb9f) throw bad(`magic is ${view.readUInt16LE(0).toString(16)}, not eb9f`)
  if (view[2] !== 1) throw bad(`version ${view[2]} is unknown`)
  const header = view.readUInt32LE(4)
  const typeStart = header + view.readUInt32LE(8)
  const typeEnd = typeStart + view.readUInt32LE(12)
  const stringStart = header + view.readUInt32LE(16)
  const stringEnd = stringStart + view.readUInt32LE(20)
  if (header < 24 || typeEnd > view.length || stringEnd > view.length)
    throw bad(
      `header places types at ${typeStart}…${typeEnd}, strings at ${stringStart}…${stringEnd} of ${view.length}`,
    )
  if (stringEnd === stringStart || view[stringStart] !== 0 || view[stringEnd - 1] !== 0)
    throw bad('the strings do not start and end with NUL')
  const types = view.subarray(typeStart, typeEnd)
  let offsets = new Uint32Array(1 << 17)
  let count = 1
  let at = 0
  while (at < types.length) {
    if (at + COMMON > types.length) throw bad(`record ${count} is cut off at ${at}`)
    const info = types.readUInt32LE(at + 4)
    const kind = (info >>> 24) & 0x7f
    const record = RECORD[kind]
    if (record === undefined) throw bad(`type ${count} at ${at} is of the unknown kind ${kind}`)
    if (count >= MAX_TYPES) throw bad(`more than ${MAX_TYPES} types`)
    if (count + 2 > offsets.length) {
      const larger = new Uint32Array(offsets.length * 2)
      larger.set(offsets)
      offsets = larger
    }
    offsets[count++] = at
    at += COMMON + record[0] + record[1] * (info & 0xff_ffff)
    if (at > types.length) throw bad(`type ${count - 1} (kind ${kind}) runs past the end of the types`)
  }
  offsets[count] = at
  return { types, strings: view.subarray(stringStart, stringEnd), offsets: offsets.subarray(0, count + 1) }
}
