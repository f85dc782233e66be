import type { Random } from '../random.js'

/**
 * A type as C would write it, in a small language: `u32`, `struct list_head`, `struct cred *`, `char[16]`,
 * `struct upid[1]`, `unsigned int:3` (a bit-field), and `fn *` for a pointer to a function.
 */
export type TypeText = string

/** What a struct or union is made of, by member name. A name that starts with `.` is an anonymous member. */
export interface Shape {
  readonly kind?: 'struct' | 'union'
  readonly members: Readonly<Record<string, TypeText | Shape>>
  /** Members keep this order and get no padding between them: layouts the hardware or an ABI fixes. */
  readonly fixed?: boolean
  /** This member stays first. */
  readonly first?: string
  /** Bytes of members that nobody asks for, spread between the others. */
  readonly filler?: number
  /** No alignment (`__packed`). */
  readonly packed?: boolean
}

/** A parsed {@link TypeText}. */
export interface TypeRef {
  readonly base: string
  readonly pointers: number
  readonly counts: readonly number[]
  readonly bits: number
}

export interface Member {
  readonly name: string
  readonly type: TypeRef
  /** For anonymous members. */
  readonly inline?: Layout
  readonly bitOffset: number
  readonly size: number
}

/** A struct or union with its offsets. */
export interface Layout {
  readonly kind: 'struct' | 'union'
  readonly name: string
  readonly size: number
  readonly align: number
  readonly members: readonly Member[]
}

/** Where a member lies. */
export interface Field {
  readonly offset: number
  readonly type: TypeRef
  readonly size: number
  /** Of a bit-field, its first bit; otherwise `offset` in bits. */
  readonly bitOffset: number
}

/** Scalars by name: bytes, and whether they are signed, a character or a boolean. */
export const SCALARS: Readonly<Record<string, { size: number; encoding: 'unsigned' | 'signed' | 'char' | 'bool' }>> = {
  'unsigned char': { size: 1, encoding: 'unsigned' },
  char: { size: 1, encoding: 'char' },
  _Bool: { size: 1, encoding: 'bool' },
  'short unsigned int': { size: 2, encoding: 'unsigned' },
  'short int': { size: 2, encoding: 'signed' },
  'unsigned int': { size: 4, encoding: 'unsigned' },
  int: { size: 4, encoding: 'signed' },
  'long unsigned int': { size: 8, encoding: 'unsigned' },
  'long int': { size: 8, encoding: 'signed' },
  'long long unsigned int': { size: 8, encoding: 'unsigned' },
}

/** Names that stand for others. */
export const TYPEDEFS: Readonly<Record<string, TypeText>> = {
  u8: 'unsigned char',
  u16: 'short unsigned int',
  u32: 'unsigned int',
  u64: 'long long unsigned int',
  bool: '_Bool',
  pid_t: 'int',
  size_t: 'long unsigned int',
  gfp_t: 'unsigned int',
  kuid_t: 'struct kuid_t',
  kgid_t: 'struct kgid_t',
  atomic_t: 'struct atomic_t',
  refcount_t: 'struct refcount_struct',
  spinlock_t: 'struct spinlock',
  pgd_t: 'struct pgd_t',
  kprobe_opcode_t: 'u8',
  gate_desc: 'struct gate_struct',
  Elf64_Sym: 'struct elf64_sym',
}

/** Parses {@link TypeText}. */
export function parseType(text: TypeText): TypeRef {
  const match = /^(?<base>[A-Za-z_][\w ]*?)\s*(?<stars>[* ]*)(?<counts>(?:\[\d*\])*)(?::(?<bits>\d+))?$/.exec(text)
  if (match?.groups === undefined) throw new Error(`cannot parse the type '${text}'`)
  const { base, stars, counts, bits } = match.groups
  return {
    base: base as string,
    pointers: (stars ?? '').replaceAll(' ', '').length,
    counts: [...(counts ?? '').matchAll(/\[(\d*)\]/g)].map((m) => Number(m[1])),
    bits: Number(bits ?? 0),
  }
}

/** The types of one synthetic kernel: each struct laid out once, in an order drawn from the seed. */
export class Types {
  readonly #shapes: Readonly<Record<string, Shape>>
  readonly #random: Random
  readonly #layouts = new Map<string, Layout>()
  readonly #paths = new Map<string, Map<string, Field | undefined>>()

  constructor(shapes: Readonly<Record<string, Shape>>, random: Random) {
    this.#shapes = shapes
    this.#random = random
    for (const name of Object.keys(shapes)) this.struct(name)
  }

  /** Names of all structs and unions. */
  names(): string[] {
    return Object.keys(this.#shapes)
  }

  has(name: string): boolean {
    return name in this.#shapes
  }

  struct(name: string): Layout {
    const known = this.#layouts.get(name)
    if (known !== undefined) return known
    const shape = this.#shapes[name]
    if (shape === undefined) throw new Error(`the synthetic kernel has no struct ${name}`)
    const layout = this.#lay(name, shape, this.#random.fork(name))
    this.#layouts.set(name, layout)
    return layout
  }

  sizeof(name: string): number {
    return this.struct(name).size
  }

  /** True if the struct has the member path; kernels of other releases lack some. */
  hasField(struct: string, path: string): boolean {
    return this.#find(struct, path) !== undefined
  }

  offset(struct: string, path: string): number {
    return this.field(struct, path).offset
  }

  /** Offset, type and size of a member path such as `se.group_node`, `numbers[0].nr` or, in a union, a plain name. */
  field(struct: string, path: string): Field {
    const found = this.#find(struct, path)
    if (found === undefined) throw new RangeError(`struct ${struct} has no member ${path}`)
    return found
  }

  #find(struct: string, path: string): Field | undefined {
    let paths = this.#paths.get(struct)
    if (paths === undefined) {
      paths = new Map()
      this.#paths.set(struct, paths)
    }
    if (!paths.has(path)) paths.set(path, this.#look(struct, path))
    return paths.get(path)
  }

  #look(struct: string, path: string): Field | undefined {
    let layout: Layout | undefined = this.struct(struct)
    let bits = 0
    let type: TypeRef | undefined
    for (const part of path.split('.')) {
      if (type !== undefined) layout = this.#inside(type)
      const [, name, indices] = /^(\w+)((?:\[\d+\])*)$/.exec(part) ?? []
      const hit = layout === undefined || name === undefined ? undefined : find(layout, name)
      if (hit === undefined) return undefined
      type = hit.member.type
      bits += hit.bits
      for (const [, index] of (indices ?? '').matchAll(/\[(\d+)\]/g)) {
        type = { ...type, counts: type.counts.slice(1) }
        bits += Number(index) * this.#sizeOf(type) * 8
      }
    }
    if (type === undefined) return undefined
    return { offset: Math.floor(bits / 8), type, size: this.#sizeOf(type), bitOffset: bits }
  }

  /** What a member's own members are; a pointer has none. */
  #inside(type: TypeRef): Layout | undefined {
    const { base, pointers, counts } = this.#resolve(type)
    const name = base.replace(/^(struct|union) /, '')
    return pointers === 0 && counts.length === 0 && this.has(name) ? this.struct(name) : undefined
  }

  #resolve(type: TypeRef): TypeRef {
    let base = type.base
    while (base in TYPEDEFS) base = TYPEDEFS[base] as string
    return { ...type, base }
  }

  #sizeOf(type: TypeRef): number {
    const count = type.counts.reduce((a, b) => a * b, 1)
    if (type.pointers > 0) return 8 * count
    const { base } = this.#resolve(type)
    const scalar = SCALARS[base]
    if (scalar !== undefined) return scalar.size * count
    if (base.startsWith('enum ')) return 4 * count
    return this.struct(base.replace(/^(struct|union) /, '')).size * count
  }

  #alignOf(type: TypeRef): number {
    if (type.pointers > 0) return 8
    const { base } = this.#resolve(type)
    if (base.startsWith('enum ')) return 4
    return SCALARS[base]?.size ?? this.struct(base.replace(/^(struct|union) /, '')).align
  }

  #lay(name: string, shape: Shape, random: Random): Layout {
    const kind = shape.kind ?? 'struct'
    const entries = Object.entries(shape.members)
    let order = entries
    if (shape.fixed !== true && kind === 'struct') {
      const spread = fillers(shape.filler ?? 0, random)
      // A flexible array member ends its struct.
      const last = entries.filter(([, t]) => typeof t === 'string' && t.endsWith('[]'))
      const head = entries.filter(([n]) => n === shape.first)
      order = [
        ...head,
        ...random.shuffled([...entries.filter((e) => !last.includes(e) && !head.includes(e)), ...spread]),
        ...last,
      ]
    }
    const members: Member[] = []
    let align = 1
    let bits = 0
    let size = 0
    for (const [member, text] of order) {
      const inline = typeof text === 'string' ? undefined : this.#lay('', text, random.fork(member))
      const type = typeof text === 'string' ? parseType(text) : { base: '', pointers: 0, counts: [], bits: 0 }
      const own = inline?.align ?? this.#alignOf(type)
      const bytes = inline?.size ?? this.#sizeOf(type)
      const wanted = shape.packed === true ? 1 : own
      if (kind === 'union') bits = 0
      if (type.bits > 0) {
        const unit = own * 8
        if (Math.floor(bits / unit) !== Math.floor((bits + type.bits - 1) / unit)) bits = Math.ceil(bits / unit) * unit
      } else {
        bits = Math.ceil(Math.ceil(bits / 8) / wanted) * wanted * 8
      }
      members.push({
        name: member.startsWith('.') ? '' : member,
        type,
        ...(inline === undefined ? {} : { inline }),
        bitOffset: bits,
        size: bytes,
      })
      bits += type.bits > 0 ? type.bits : bytes * 8
      align = Math.max(align, wanted)
      size = Math.max(size, Math.ceil(bits / 8))
    }
    return { kind, name, size: Math.ceil(size / align) * align, align, members }
  }
}

function find(layout: Layout, name: string): { member: Member; bits: number } | undefined {
  for (const member of layout.members) {
    if (member.name === name) return { member, bits: member.bitOffset }
    if (member.inline === undefined) continue
    const inner = find(member.inline, name)
    if (inner !== undefined) return { member: inner.member, bits: inner.bits + member.bitOffset }
  }
  return undefined
}

/** Members without meaning that together take about `bytes`: they move the others. */
function fillers(bytes: number, random: Random): [string, TypeText][] {
  const out: [string, TypeText][] = []
  for (let left = bytes; left > 0; ) {
    const words = 1 + random.below(Math.max(1, Math.min(16, left >> 3)))
    out.push([`__filler${out.length}`, `long unsigned int[${words}]`])
    left -= words * 8
  }
  return out
}
