import { CloudAppError } from '../../errors.js'
import { beyond, malformed, SNAPSHOT_LIMITS, type SnapshotBytes } from './snapshot.js'

/** Sizes of Elf64_Ehdr, Elf64_Phdr, Elf64_Shdr (System V ABI, chapters 4 and 5; Linux: include/uapi/linux/elf.h). */
const EHDR = 64
const PHDR = 56
const SHDR = 64

const ET_CORE = 4
const EM_X86_64 = 62
/** The number of program headers does not fit: it is in sh_info of section 0. */
const PN_XNUM = 0xffff

export const PT_LOAD = 1
export const PT_NOTE = 4

export interface ElfSegment {
  readonly type: number
  readonly offset: bigint
  readonly physical: bigint
  /** Bytes in the file. */
  readonly size: bigint
}

export interface ElfSection {
  readonly name: string
  readonly offset: bigint
  readonly size: bigint
}

export interface ElfCore {
  readonly segments: readonly ElfSegment[]
  readonly sections: readonly ElfSection[]
}

/**
 * Reads the headers of an ELF64 core file of x86-64.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_SOURCE` if it is none, or malformed; `ERR_CLOUDAPP_UNSUPPORTED` for other machines;
 *   `ERR_CLOUDAPP_LIMIT`.
 */
export async function readElfHeaders(bytes: SnapshotBytes): Promise<ElfCore> {
  if (bytes.size < BigInt(EHDR)) throw malformed('the file is no ELF file: it is shorter than its header')
  const header = await bytes.read(0n, EHDR, 'the ELF header')
  if (header.readUInt32BE(0) !== 0x7f_45_4c_46)
    throw malformed("the file is no ELF file: its first bytes are not '\\x7fELF'")
  // EI_DATA, EI_CLASS, e_machine
  if (header[5] !== 1 || header[4] !== 2 || header.readUInt16LE(18) !== EM_X86_64) {
    throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', 'the ELF file is not a 64-bit one of x86-64, as read here')
  }
  const type = header.readUInt16LE(16)
  if (type !== ET_CORE) throw malformed(`the ELF file is of type ${type}, and no core file (4)`)
  const phoff = header.readBigUInt64LE(32)
  const shoff = header.readBigUInt64LE(40)
  let phnum = header.readUInt16LE(56)
  let shnum = header.readUInt16LE(60)
  const shstrndx = header.readUInt16LE(62)
  if (phnum > 0 && header.readUInt16LE(54) !== PHDR) throw malformed('the program headers have an unknown size')
  if (shoff > 0n && (shnum > 0 || phnum === PN_XNUM) && header.readUInt16LE(58) !== SHDR) {
    throw malformed('the section headers have an unknown size')
  }
  if (phnum === PN_XNUM) {
    const first = await bytes.read(shoff, SHDR, 'the first section header')
    phnum = first.readUInt32LE(44)
  }
  if (shoff === 0n) shnum = 0
  if (phnum > SNAPSHOT_LIMITS.ranges) throw beyond('program headers', phnum, SNAPSHOT_LIMITS.ranges)
  const segments = segmentsOf(await bytes.read(phoff, phnum * PHDR, 'the table of program headers'))
  const table = await bytes.read(shoff, shnum * SHDR, 'the table of section headers')
  return { segments, sections: await sectionsOf(bytes, table, shstrndx) }
}

function segmentsOf(table: Buffer): ElfSegment[] {
  const segments: ElfSegment[] = []
  for (let at = 0; at < table.length; at += PHDR) {
    segments.push({
      type: table.readUInt32LE(at),
      offset: table.readBigUInt64LE(at + 8),
      physical: table.readBigUInt64LE(at + 24),
      size: table.readBigUInt64LE(at + 32),
    })
  }
  return segments
}

async function sectionsOf(bytes: SnapshotBytes, table: Buffer, shstrndx: number): Promise<ElfSection[]> {
  // Section 0 is no section; a file may have no names.
  if (shstrndx === 0 || table.length === 0) return []
  if (shstrndx * SHDR >= table.length) throw malformed('the section of the names of sections does not exist')
  const size = table.readBigUInt64LE(shstrndx * SHDR + 32)
  if (size > BigInt(SNAPSHOT_LIMITS.table)) throw beyond('bytes of names of sections', size, SNAPSHOT_LIMITS.table)
  const names = await bytes.read(table.readBigUInt64LE(shstrndx * SHDR + 24), Number(size), 'the names of sections')
  const sections: ElfSection[] = []
  for (let at = SHDR; at < table.length; at += SHDR) {
    const from = table.readUInt32LE(at)
    // A name is looked at as far as the longest known one, so that many sections can not make long work.
    const text = names.subarray(Math.min(from, names.length), Math.min(from + 32, names.length))
    const end = text.indexOf(0)
    const name = text.toString('latin1', 0, end < 0 ? text.length : end)
    sections.push({ name, offset: table.readBigUInt64LE(at + 24), size: table.readBigUInt64LE(at + 32) })
  }
  return sections
}

export interface ElfNote {
  readonly name: string
  readonly type: number
  readonly desc: Buffer
}

/** Reads notes (Elf64_Nhdr: three u32, then name and descriptor, each padded to four bytes). */
export function* notesOf(table: Buffer): Generator<ElfNote> {
  for (let at = 0; at < table.length; ) {
    if (table.length - at < 12) throw malformed('the last note is cut short')
    const nameSize = table.readUInt32LE(at)
    const descSize = table.readUInt32LE(at + 4)
    const desc = at + 12 + pad(nameSize)
    if (desc + descSize > table.length) throw malformed('a note ends behind its segment')
    const name = table.toString('latin1', at + 12, at + 12 + Math.min(nameSize, 32)).replace(/\0.*$/s, '')
    yield { name, type: table.readUInt32LE(at + 8), desc: table.subarray(desc, desc + descSize) }
    at = desc + pad(descSize)
  }
}

const pad = (size: number): number => Math.ceil(size / 4) * 4
