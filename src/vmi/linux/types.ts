import { CloudAppError } from '../../errors.js'
import { Btf, BtfKind, type BtfParts } from './btf.js'
import { profileError } from './errors.js'
import { hashName, sameName, tableSlots } from './hash.js'

/** Where a field lies in its outermost type. */
export interface Field {
  /** Bytes from the start of the outermost type. */
  readonly offset: number
  /** Bytes. For a bitfield, those of the declared integer type. */
  readonly size: number
  /** A bitfield's first bit, counted from bit 0 of byte `offset`, and its width. */
  readonly bits?: { readonly first: number; readonly width: number }
}

/** One member of a struct or union; those of anonymous members are listed in place. */
export interface MemberInfo extends Field {
  readonly name: string
  /** BTF type id, for {@link TypeTable.describe}. */
  readonly type: number
}

const MAGIC = 0x50595443 // "CTYP"
const HEADER = 32
/** Anonymous structs inside each other, and members looked at for one name: a kernel needs 6 and some hundreds. */
const MAX_DEPTH = 16
const MAX_VISITS = 200_000

const INDEXED = new Set<number>([
  BtfKind.Int,
  BtfKind.Struct,
  BtfKind.Union,
  BtfKind.Enum,
  BtfKind.Enum64,
  BtfKind.Typedef,
  BtfKind.Func,
  BtfKind.Var,
])

/** Encodes the `types` section: the BTF records and strings, where each record starts, and a table of names. */
export function encodeTypes(parts: BtfParts, seed: number): Uint8Array {
  const { types, strings, offsets } = parts
  const btf = new Btf(types, strings, offsets)
  const named: number[] = []
  for (let id = 1; id < btf.count; id++) {
    const name = btf.nameOffset(id)
    if (name >= strings.length) throw profileError('BTF', `type ${id} has its name at ${name} of ${strings.length}`)
    if (name !== 0 && INDEXED.has(btf.kind(id))) named.push(id)
  }
  const slots = tableSlots(named.length)
  const total = HEADER + 4 * offsets.length + 4 * slots + types.length + strings.length
  const out = new Uint8Array(total)
  const words = new Uint32Array(out.buffer, 0, (HEADER + 4 * offsets.length + 4 * slots) / 4)
  words.set([MAGIC, 1, offsets.length, slots, types.length, strings.length, seed >>> 0])
  words.set(offsets, HEADER / 4)
  const table = words.subarray(HEADER / 4 + offsets.length)
  for (const id of named) {
    const start = btf.nameOffset(id)
    const end = btf.strings.indexOf(0, start)
    let slot = hashName(strings, start, end, seed) & (slots - 1)
    while (table[slot] !== 0) slot = (slot + 1) & (slots - 1)
    table[slot] = id
  }
  out.set(types, HEADER + 4 * offsets.length + 4 * slots)
  out.set(strings, HEADER + 4 * offsets.length + 4 * slots + types.length)
  return out
}

/** All types of a kernel, from its BTF, looked up by name and by path. */
export class TypeTable {
  /** The records themselves. */
  readonly btf: Btf
  readonly #table: Uint32Array
  readonly #seed: number
  readonly #paths = new Map<string, Field | undefined>()

  private constructor(section: Uint8Array) {
    const bad = (what: string) => profileError('types', `malformed section: ${what}`)
    if (section.byteLength < HEADER) throw bad('truncated')
    const bytes = section.byteOffset % 4 === 0 ? section : section.slice()
    const header = Array.from(new Uint32Array(bytes.buffer, bytes.byteOffset, HEADER / 4)) as [number, ...number[]]
    const [magic, version, records = 0, slots = 0, typeBytes = 0, stringBytes = 0, seed = 0] = header
    if (magic !== MAGIC || version !== 1) throw bad('wrong magic or version')
    if (records < 2 || slots < 16 || (slots & (slots - 1)) !== 0) throw bad('wrong table size')
    if (HEADER + 4 * records + 4 * slots + typeBytes + stringBytes !== bytes.byteLength) throw bad('wrong length')
    const offsets = new Uint32Array(bytes.buffer, bytes.byteOffset + HEADER, records)
    this.#table = new Uint32Array(bytes.buffer, bytes.byteOffset + HEADER + 4 * records, slots)
    const at = HEADER + 4 * records + 4 * slots
    this.btf = new Btf(bytes.subarray(at, at + typeBytes), bytes.subarray(at + typeBytes), offsets)
    this.#seed = seed
  }

  /** Opens a `types` section. @throws ERR_CLOUDAPP_PROFILE */
  static open(section: Uint8Array): TypeTable {
    return new TypeTable(section)
  }

  /** Ids of every type of that name: one name can be a struct and a function. */
  ids(name: string): number[] {
    const wanted = Buffer.from(name, 'utf8')
    const mask = this.#table.length - 1
    const { strings } = this.btf
    const found: number[] = []
    let slot = hashName(wanted, 0, wanted.length, this.#seed) & mask
    for (let probes = 0; probes <= mask; probes++) {
      const id = this.#table[slot] as number
      if (id === 0) break
      const start = this.btf.nameOffset(id)
      if (sameName(strings, start, start + wanted.length, wanted) && strings[start + wanted.length] === 0)
        found.push(id)
      slot = (slot + 1) & mask
    }
    return found.sort((a, b) => a - b)
  }

  /** Id of a type by name: a struct or union before a typedef, enum or integer. Undefined if there is none. */
  id(name: string): number | undefined {
    const bare = name.replace(/^(struct|union|enum)\s+/, '')
    const found = this.ids(bare)
    const ofKind = (...kinds: number[]) => found.find((id) => kinds.includes(this.btf.kind(id)))
    return (
      ofKind(BtfKind.Struct, BtfKind.Union) ??
      ofKind(BtfKind.Typedef, BtfKind.Enum, BtfKind.Enum64, BtfKind.Int, BtfKind.Var)
    )
  }

  /**
   * Where `path` lies: `'task_struct.signal'`, `'rq.cfs.tasks_timeline'`, `'module.mem[0].base'`. Anonymous structs and
   * unions are passed through; pointers are not followed.
   * @throws ERR_CLOUDAPP_PROFILE naming the part of the path that does not exist
   */
  field(path: string): Field {
    const field = this.#lookup(path)
    if (field === undefined) throw profileError(path, this.#explain(path))
    return field
  }

  /** Byte offset of {@link field}. @throws ERR_CLOUDAPP_PROFILE */
  offset(path: string): number {
    return this.field(path).offset
  }

  /** Size in bytes of a type (`'task_struct'`) or a field (`'task_struct.comm'`). @throws ERR_CLOUDAPP_PROFILE */
  sizeOf(path: string): number {
    return this.field(path).size
  }

  /** True if the type, or the field, exists. */
  has(path: string): boolean {
    return this.#lookup(path) !== undefined
  }

  /** Members of a struct or union in declaration order. @throws ERR_CLOUDAPP_PROFILE */
  members(type: string): MemberInfo[] {
    const id = this.id(type)
    if (id === undefined) throw profileError(type, `the kernel's BTF has no type "${type}"`)
    const list: MemberInfo[] = []
    this.#eachMember(this.btf.strip(id), 0, 0, { left: MAX_VISITS }, (name, type, bitOffset, bitSize) => {
      list.push({ name: this.btf.string(name), type, ...this.#place(type, bitOffset, bitSize) })
      return false
    })
    return list
  }

  /** Value of an enumerator, e.g. `('pid_type', 'PIDTYPE_PID')`; undefined if there is none. */
  enumerator(type: string, name: string): bigint | undefined {
    for (const id of this.ids(type)) {
      const enumId = this.btf.strip(id)
      const kind = this.btf.kind(enumId)
      if (kind !== BtfKind.Enum && kind !== BtfKind.Enum64) continue
      for (let i = 0; i < this.btf.length(enumId); i++) {
        const words = kind === BtfKind.Enum ? 2 : 3
        if (this.btf.string(this.btf.extra(enumId, words * i)) !== name) continue
        const low = this.btf.extra(enumId, words * i + 1)
        if (kind === BtfKind.Enum) return this.btf.flag(enumId) ? BigInt(low | 0) : BigInt(low)
        const value = (BigInt(this.btf.extra(enumId, words * i + 2)) << 32n) | BigInt(low)
        return this.btf.flag(enumId) ? BigInt.asIntN(64, value) : value
      }
    }
    return undefined
  }

  /** Kind ({@link BtfKind}), name and size (0 if it has none) of a type id, typedefs and qualifiers stripped. */
  describe(id: number): { readonly kind: number; readonly name: string; readonly size: number } {
    const type = this.btf.strip(id)
    const kind = this.btf.kind(type)
    const sized = kind !== BtfKind.Void && kind !== BtfKind.Fwd && kind !== BtfKind.FuncProto && kind !== BtfKind.Func
    return { kind, name: this.btf.name(type), size: sized ? this.btf.sizeOf(type) : 0 }
  }

  #lookup(path: string): Field | undefined {
    if (this.#paths.has(path)) return this.#paths.get(path)
    const field = this.#resolve(path).field
    // Paths come from code, but a caller may build them from data.
    if (this.#paths.size < 4096) this.#paths.set(path, field)
    return field
  }

  #explain(path: string): string {
    return this.#resolve(path).missing ?? 'not found'
  }

  #resolve(path: string): { field?: Field; missing?: string } {
    const [typeName = '', ...segments] = path.split('.')
    if (path.length > 512 || !/^(?:(?:struct|union|enum) )?\w+(?:\[\d+\])*(?:\.\w+(?:\[\d+\])*)*$/.test(path))
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `"${path}" is no path of a type: write "struct.field"`)
    const id = this.id(typeName)
    if (id === undefined) return { missing: `the kernel's BTF has no type "${typeName}"` }
    let type = id
    let bits = 0
    let width = 0
    for (const segment of segments) {
      const [name = '', ...indexes] = segment.split('[')
      const outer = this.btf.strip(type)
      const kind = this.btf.kind(outer)
      if (kind !== BtfKind.Struct && kind !== BtfKind.Union)
        return { missing: `"${name}" is looked for in something that is no struct (pointers are not followed)` }
      const wanted = Buffer.from(name, 'utf8')
      let found = false
      this.#eachMember(outer, 0, 0, { left: MAX_VISITS }, (nameOffset, member, bitOffset, bitSize) => {
        const { strings } = this.btf
        if (strings[nameOffset + wanted.length] !== 0) return false
        if (!sameName(strings, nameOffset, nameOffset + wanted.length, wanted)) return false
        type = member
        bits += bitOffset
        width = bitSize
        found = true
        return true
      })
      if (!found) return { missing: `struct ${this.btf.name(outer) || typeName} has no member "${name}"` }
      for (const index of indexes) {
        const array = this.btf.strip(type)
        const at = Number.parseInt(index, 10)
        if (this.btf.kind(array) !== BtfKind.Array) return { missing: `"${name}" is no array` }
        const length = this.btf.extra(array, 2)
        if (length !== 0 && at >= length) return { missing: `"${name}" has ${length} elements` }
        type = this.btf.extra(array, 0)
        bits += at * this.btf.sizeOf(type) * 8
      }
    }
    return { field: this.#place(type, bits, width) }
  }

  #place(type: number, bitOffset: number, bitSize: number): Field {
    const { size } = this.describe(type)
    const offset = Math.floor(bitOffset / 8)
    return bitSize === 0 ? { offset, size } : { offset, size, bits: { first: bitOffset % 8, width: bitSize } }
  }

  /** Calls back for each named member, descending into anonymous ones; stops when the callback returns true. */
  #eachMember(
    type: number,
    base: number,
    depth: number,
    budget: { left: number },
    visit: (nameOffset: number, type: number, bitOffset: number, bitSize: number) => boolean,
  ): boolean {
    if (depth > MAX_DEPTH) throw profileError('BTF', `anonymous structs are nested more than ${MAX_DEPTH} deep`)
    const { btf } = this
    const kind = btf.kind(type)
    if (kind !== BtfKind.Struct && kind !== BtfKind.Union) return false
    for (let i = 0, n = btf.length(type); i < n; i++) {
      if (budget.left-- <= 0) throw profileError('BTF', `a struct has more than ${MAX_VISITS} members`)
      const member = btf.member(type, i)
      if (member.nameOffset !== 0) {
        if (visit(member.nameOffset, member.type, base + member.bitOffset, member.bitSize)) return true
      } else if (this.#eachMember(btf.strip(member.type), base + member.bitOffset, depth + 1, budget, visit))
        return true
    }
    return false
  }
}
