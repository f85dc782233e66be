/** Encoders of the two tables a kernel image carries, for tests: BTF and kallsyms. */

export interface MemberSpec {
  readonly name: string
  readonly type: number
  /** Bits from the start of the struct. */
  readonly bit: number
  readonly width?: number
}

/** Builds a BTF blob record by record. Format: Documentation/bpf/btf.rst. */
export class BtfBuilder {
  readonly #records: Buffer[] = []
  readonly #strings = ['']
  #stringBytes = 1
  #ids = 0

  #string(text: string): number {
    if (text === '') return 0
    const at = this.#stringBytes
    this.#strings.push(text)
    this.#stringBytes += Buffer.byteLength(text) + 1
    return at
  }

  /** A record of any kind, as words after the common three. Returns its id. */
  record(kind: number, name: string, vlen: number, third: number, extra: readonly number[] = [], flag = false): number {
    const words = [this.#string(name), ((kind << 24) | vlen | (flag ? 0x8000_0000 : 0)) >>> 0, third, ...extra]
    const bytes = Buffer.alloc(4 * words.length)
    for (const [i, word] of words.entries()) bytes.writeUInt32LE(word >>> 0, 4 * i)
    this.#records.push(bytes)
    return ++this.#ids
  }

  int(name: string, size: number): number {
    return this.record(1, name, 0, size, [size * 8])
  }

  pointer(type: number): number {
    return this.record(2, '', 0, type)
  }

  array(type: number, length: number): number {
    return this.record(3, '', 0, 0, [type, 0, length])
  }

  struct(name: string, size: number, members: readonly MemberSpec[], union = false): number {
    const flag = members.some(({ width }) => width !== undefined)
    const extra = members.flatMap(({ name: member, type, bit, width }) => [
      this.#string(member),
      type,
      flag ? ((width ?? 0) << 24) | bit : bit,
    ])
    return this.record(union ? 5 : 4, name, members.length, size, extra, flag)
  }

  typedef(name: string, type: number): number {
    return this.record(8, name, 0, type)
  }

  enumeration(name: string, values: Readonly<Record<string, number>>, signed = false): number {
    const extra = Object.entries(values).flatMap(([key, value]) => [this.#string(key), value])
    return this.record(6, name, Object.keys(values).length, 4, extra, signed)
  }

  enumeration64(name: string, values: Readonly<Record<string, bigint>>): number {
    const extra = Object.entries(values).flatMap(([key, value]) => [
      this.#string(key),
      Number(BigInt.asUintN(32, value)),
      Number(BigInt.asUintN(32, value >> 32n)),
    ])
    return this.record(19, name, Object.keys(values).length, 8, extra)
  }

  bytes(): Buffer {
    const types = Buffer.concat(this.#records)
    const strings = Buffer.from(`${this.#strings.join('\0')}\0`)
    const header = Buffer.alloc(24)
    header.writeUInt16LE(0xeb9f)
    header[2] = 1
    header.writeUInt32LE(24, 4)
    header.writeUInt32LE(types.length, 12)
    header.writeUInt32LE(types.length, 16)
    header.writeUInt32LE(strings.length, 20)
    return Buffer.concat([header, types, strings])
  }
}

/** How kallsyms is laid out: before 6.2; 6.2 and 6.3; 6.4 to 6.19; since 7.0. */
export type KallsymsLayout = '5.10' | '6.2' | '6.4' | '7.0'

export interface SymbolSpec {
  readonly name: string
  readonly letter: string
  /** Virtual address; of an absolute symbol, its value. */
  readonly value: bigint
  readonly absolute?: boolean
}

export interface KallsymsTables {
  readonly bytes: Buffer
  /** Positions in `bytes`. */
  readonly at: {
    numSyms: number
    names: number
    tokenTable: number
    tokenIndex: number
    offsets: number
    relativeBase?: number
  }
}

/** Tokens besides the characters that stand for themselves. */
const PAIRS = ['sys_', 'init', 'task', '__', 'Tx', '_s', 'ta', 'rt']

/**
 * Encodes symbols (in ascending order) as kallsyms, `start` being the virtual address of the tables' first byte.
 * Format: scripts/kallsyms.c of the kernels named by the layout.
 */
export function encodeKallsyms(symbols: readonly SymbolSpec[], layout: KallsymsLayout, start: bigint): KallsymsTables {
  const alignment = layout === '7.0' ? 4 : 8
  const tokens = Array.from({ length: 256 }, (_, code) => {
    if (code >= 0x21 && code < 0x7f) return String.fromCharCode(code)
    return PAIRS[code] ?? `x${code.toString(16)}`
  })
  const token = new Map(tokens.map((text, code) => [text, code]))
  const packed = symbols.map(({ name, letter }) => {
    const text = letter + name
    const codes: number[] = []
    for (let at = 0; at < text.length; ) {
      const pair = PAIRS.find((candidate) => text.startsWith(candidate, at))
      const piece = pair ?? (text[at] as string)
      codes.push(token.get(piece) as number)
      at += piece.length
    }
    const length = codes.length < 0x80 ? [codes.length] : [(codes.length & 0x7f) | 0x80, codes.length >> 7]
    return Buffer.from([...length, ...codes])
  })
  const words = (values: readonly number[]) => {
    const bytes = Buffer.alloc(4 * values.length)
    for (const [i, value] of values.entries()) bytes.writeUInt32LE(value >>> 0, 4 * i)
    return bytes
  }
  let place = 0
  const markers = packed.flatMap((name, i) => {
    const here = place
    place += name.length
    return i % 256 === 0 ? [here] : []
  })
  const index: number[] = []
  let tokenAt = 0
  for (const text of tokens) {
    index.push(tokenAt)
    tokenAt += text.length + 1
  }
  const indexBytes = Buffer.alloc(512)
  for (const [i, value] of index.entries()) indexBytes.writeUInt16LE(value, 2 * i)
  const base = symbols.find(({ absolute }) => !absolute)?.value ?? 0n
  const perCpu = symbols.some(({ absolute }) => absolute)

  const parts: Buffer[] = []
  let size = 0
  const append = (bytes: Buffer): number => {
    const pad = (alignment - (size % alignment)) % alignment
    parts.push(Buffer.alloc(pad), bytes)
    size += pad
    const at = size
    size += bytes.length
    return at
  }
  const at: { -readonly [K in keyof KallsymsTables['at']]: KallsymsTables['at'][K] } = {
    numSyms: 0,
    names: 0,
    tokenTable: 0,
    tokenIndex: 0,
    offsets: 0,
  }
  const addresses = () => {
    const pad = (alignment - (size % alignment)) % alignment
    const offsets = symbols.map(({ value, absolute }, i) => {
      if (layout === '7.0') return Number(value - (start + BigInt(size + pad + 4 * i)))
      if (absolute) return Number(value)
      return perCpu ? Number(base - 1n - value) : Number(value - base)
    })
    at.offsets = append(words(offsets))
    if (layout === '7.0') return
    const relative = Buffer.alloc(8)
    relative.writeBigUInt64LE(base)
    at.relativeBase = append(relative)
  }
  const early = layout === '5.10' || layout === '6.2'
  if (early) addresses()
  at.numSyms = append(words([symbols.length]))
  at.names = append(Buffer.concat(packed))
  append(words(markers))
  const sequence = Buffer.alloc(3 * symbols.length, 1)
  if (layout === '6.2') append(sequence)
  at.tokenTable = append(Buffer.from(`${tokens.join('\0')}\0`, 'latin1'))
  at.tokenIndex = append(indexBytes)
  if (!early) {
    addresses()
    append(sequence)
  }
  return { bytes: Buffer.concat(parts), at }
}
