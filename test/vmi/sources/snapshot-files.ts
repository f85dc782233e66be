/** Builds snapshot files, also wrong ones, for the tests of the sources that read them. */
import { checkWithin } from '../../../src/vmi/sources/snapshot.js'

export interface Segment {
  readonly type?: number
  readonly physical?: bigint
  readonly bytes: Buffer
  /** As told, where that is not true. */
  readonly size?: bigint
  readonly offset?: bigint
}

export function note(name: string, type: number, desc: Buffer): Buffer {
  const padded = (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc((4 - (bytes.length % 4)) % 4)])
  const text = Buffer.from(`${name}\0`)
  const head = Buffer.alloc(12)
  head.writeUInt32LE(text.length, 0)
  head.writeUInt32LE(desc.length, 4)
  head.writeUInt32LE(type, 8)
  return Buffer.concat([head, padded(text), padded(desc)])
}

function header(phnum: number, shoff = 0, shnum = 0, shstrndx = 0): Buffer {
  const bytes = Buffer.alloc(64)
  bytes.write('\x7fELF\x02\x01\x01', 0, 'latin1')
  bytes.writeUInt16LE(4, 16)
  bytes.writeUInt16LE(62, 18)
  bytes.writeUInt32LE(1, 20)
  bytes.writeBigUInt64LE(phnum > 0 ? 64n : 0n, 32)
  bytes.writeBigUInt64LE(BigInt(shoff), 40)
  bytes.writeUInt16LE(64, 52)
  bytes.writeUInt16LE(phnum > 0 ? 56 : 0, 54)
  bytes.writeUInt16LE(phnum, 56)
  bytes.writeUInt16LE(64, 58)
  bytes.writeUInt16LE(shnum, 60)
  bytes.writeUInt16LE(shstrndx, 62)
  return bytes
}

/** An ELF core file with program headers; `extended` counts them in section 0, as files with very many do. */
export function elfFile(segments: readonly Segment[], { extended = false } = {}): Buffer {
  const tables = 64 + segments.length * 56 + (extended ? 64 : 0)
  const heads: Buffer[] = []
  let at = tables
  for (const { type = 1, physical = 0n, bytes, size, offset } of segments) {
    const head = Buffer.alloc(56)
    head.writeUInt32LE(type, 0)
    head.writeBigUInt64LE(offset ?? BigInt(at), 8)
    head.writeBigUInt64LE(physical, 24)
    head.writeBigUInt64LE(size ?? BigInt(bytes.length), 32)
    head.writeBigUInt64LE(size ?? BigInt(bytes.length), 40)
    heads.push(head)
    at += bytes.length
  }
  const elf = extended ? header(0xffff, 64 + segments.length * 56, 0) : header(segments.length)
  if (extended) {
    const section = Buffer.alloc(64)
    section.writeUInt32LE(segments.length, 44)
    heads.push(section)
  }
  return Buffer.concat([elf, ...heads, ...segments.map(({ bytes }) => bytes)])
}

/** QEMU's note of one vCPU with register n (see the source) = base + n. */
export function qemuState(fill: (offset: number) => bigint, size = 440): Buffer {
  const desc = Buffer.alloc(size)
  for (let at = 8; at + 8 <= size; at += 8) desc.writeBigUInt64LE(fill(at), at)
  desc.writeUInt32LE(1, 0)
  desc.writeUInt32LE(size, 4)
  return desc
}

export interface XenDump {
  readonly frames: readonly bigint[]
  readonly pages: Buffer
  readonly magic?: bigint
  readonly count?: bigint
  readonly pageSize?: bigint
  readonly format?: bigint
  readonly status?: Buffer
  /** Sections left out. */
  readonly without?: readonly string[]
  readonly p2m?: boolean
}

const words = (...values: bigint[]): Buffer => Buffer.from(BigUint64Array.from(values).buffer)

/** A file as `xl dump-core` writes it: sections, and no program header. */
export function xenFile(dump: XenDump): Buffer {
  const { frames, pages, magic = 0xf00febeen, count = BigInt(frames.length), pageSize = 4096n, format = 1n } = dump
  const notes = Buffer.concat([
    note('Xen', 0x2000000, Buffer.alloc(0)),
    note('Xen', 0x2000001, words(magic, 1n, count, pageSize)),
    note('Xen', 0x2000003, words(format)),
  ])
  const contents: [string, Buffer][] = [
    ['.note.Xen', notes],
    ['.xen_prstatus', dump.status ?? Buffer.alloc(0)],
    ['.xen_pages', pages],
    [dump.p2m === true ? '.xen_p2m' : '.xen_pfn', words(...frames)],
  ]
  const kept = contents.filter(([name]) => dump.without?.includes(name) !== true)
  const names = Buffer.from(`\0${kept.map(([name]) => `${name}\0`).join('')}.shstrtab\0`)
  const all: [string, Buffer][] = [['', Buffer.alloc(0)], ['.shstrtab', names], ...kept]
  let at = 64 + all.length * 64
  const heads = all.map(([name, bytes]) => {
    const head = Buffer.alloc(64)
    head.writeUInt32LE(name === '' ? 0 : names.indexOf(`\0${name}\0`) + 1, 0)
    head.writeBigUInt64LE(BigInt(at), 24)
    head.writeBigUInt64LE(BigInt(bytes.length), 32)
    at += bytes.length
    return head
  })
  return Buffer.concat([header(0, 64, all.length, 1), ...heads, ...all.map(([, bytes]) => bytes)])
}

export function limeRange(first: bigint, last: bigint, bytes: Buffer, version = 1, magic = 'EMiL'): Buffer {
  const head = Buffer.alloc(32)
  head.write(magic, 0, 'latin1')
  head.writeUInt32LE(version, 4)
  head.writeBigUInt64LE(first, 8)
  head.writeBigUInt64LE(last, 16)
  return Buffer.concat([head, bytes])
}

/** `size` bytes, each 8 of them telling where they are, beginning with `tag`. */
export function filled(size: number, tag: number): Buffer {
  const bytes = Buffer.alloc(size)
  for (let at = 0; at + 8 <= size; at += 8) {
    bytes.writeUInt32LE(at, at)
    bytes.writeUInt32LE(tag, at + 4)
  }
  return bytes
}

/** The bytes of a file in memory, as the readers take them. */
export const bytesOf = (file: Buffer) => ({
  size: BigInt(file.length),
  read: async (offset: bigint, length: number, what: string) => {
    checkWithin(BigInt(file.length), offset, BigInt(length), what)
    return Buffer.from(file.subarray(Number(offset), Number(offset) + length))
  },
})
