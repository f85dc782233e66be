import { type ParseJob, parseImage } from '../../../src/vmi/linux/parser/image.js'
import { Window } from '../../../src/vmi/linux/parser/window.js'
import { BtfBuilder, encodeKallsyms, type KallsymsLayout, type SymbolSpec } from './encode.js'

export const TEXT = 0xffff_ffff_8220_0000n
const BANNER = 0x20_0000
const NOTES = 0x20_1000
const BTF = 0x21_0000
const TABLES = 0x28_0040

export interface TinyImage {
  readonly bytes: Buffer
  readonly job: ParseJob
  /** The same job without the tables' names: they must be found by shape. */
  readonly unnamed: ParseJob
}

/** A kernel image with nothing in it but what a profile is made from. */
export function tinyImage(
  layout: KallsymsLayout,
  options: { symbols?: readonly SymbolSpec[]; btf?: Buffer; perCpu?: boolean } = {},
): TinyImage {
  const btf = options.btf ?? tinyBtf()
  const at = (offset: number) => TEXT + BigInt(offset)
  const symbols: SymbolSpec[] = [
    ...(options.perCpu ? [{ name: 'runqueues', letter: 'A', value: 0x31c40n, absolute: true }] : []),
    { name: '_text', letter: 'T', value: at(0) },
    ...(options.symbols ?? []),
    { name: 'linux_banner', letter: 'R', value: at(BANNER) },
    { name: '__start_notes', letter: 'r', value: at(NOTES) },
    { name: '__stop_notes', letter: 'r', value: at(NOTES + 60) },
    { name: '__start_BTF', letter: 'R', value: at(BTF) },
    { name: '__stop_BTF', letter: 'R', value: at(BTF + btf.length) },
    { name: 'init_task', letter: 'D', value: at(0x40_0000) },
  ]
  const tables = encodeKallsyms(symbols, layout, at(TABLES))
  const bytes = Buffer.alloc(0x50_0000)
  bytes.write('Linux version 6.9.9-test (x@y) #1 SMP\n\0', BANNER)
  // A note that is not the build id comes first, as in Debian's kernels.
  note(4, 'Xen\0', Buffer.from('linux\0')).copy(bytes, NOTES)
  note(3, 'GNU\0', Buffer.from('00112233445566778899aabbccddeeff01234567', 'hex')).copy(bytes, NOTES + 24)
  btf.copy(bytes, BTF)
  tables.bytes.copy(bytes, TABLES)
  const digits = bytes.indexOf(Buffer.from('0\u00001\u00002\u00003\u00004\u00005\u00006\u00007\u00008\u00009\u0000'))
  const place = Object.fromEntries(Object.entries(tables.at).map(([name, value]) => [name, value + TABLES]))
  const unnamed: ParseJob = { size: bytes.length, digits: [digits], virtual: TEXT.toString(), seed: 7 }
  return { bytes, unnamed, job: { ...unnamed, digits: [], tables: place as NonNullable<ParseJob['tables']> } }
}

function note(type: number, name: string, data: Buffer): Buffer {
  const header = Buffer.alloc(12)
  header.writeUInt32LE(name.length)
  header.writeUInt32LE(data.length, 4)
  header.writeUInt32LE(type, 8)
  const padded = Buffer.alloc((data.length + 3) & ~3)
  data.copy(padded)
  return Buffer.concat([header, Buffer.from(name, 'latin1'), padded])
}

/** Types with one field of the profile's list, an anonymous union and a bitfield. */
export function tinyBtf(): Buffer {
  const btf = new BtfBuilder()
  const int = btf.int('int', 4)
  const char = btf.int('char', 1)
  const comm = btf.array(char, 16)
  const inner = btf.struct('', 8, [
    { name: 'first', type: int, bit: 0 },
    { name: 'second', type: int, bit: 32 },
  ])
  btf.struct('task_struct', 64, [
    { name: 'pid', type: int, bit: 8 * 8 },
    { name: '', type: inner, bit: 16 * 8 },
    { name: 'comm', type: comm, bit: 32 * 8 },
  ])
  return btf.bytes()
}

/** Parses an image in this process. */
export function parse({ bytes }: { bytes: Buffer }, job: ParseJob) {
  let fetched = 0
  const window = new Window(job.size, (at, length) => {
    fetched += length
    return Uint8Array.from(bytes.subarray(at, at + length))
  })
  return { ...parseImage(window, job), fetched: () => fetched }
}
