import { type BtfParts, scanBtf } from '../btf.js'
import { profileError } from '../errors.js'
import { KNOWN_FIELDS, KNOWN_SYMBOLS } from '../known.js'
import type { SymbolColumns } from '../symbols.js'
import { encodeSymbols, SymbolTable } from '../symbols.js'
import { encodeTypes, TypeTable } from '../types.js'
import { type Addresses, decodeAddresses, findAddresses } from './addresses.js'
import { decodeNames, findNames, type Names } from './names.js'
import { namedTokens, tokensByShape } from './tokens.js'
import type { Window } from './window.js'

/** What the parser is told: positions in the window; all of it may be wrong. */
export interface ParseJob {
  readonly size: number
  /** The tables VMCOREINFO names (Linux 6.0 and later). */
  readonly tables?: {
    readonly numSyms: number
    readonly names: number
    readonly tokenTable: number
    readonly tokenIndex: number
    readonly offsets: number
    readonly relativeBase?: number
  }
  /** Where `"0\0" … "9\0"` was found. */
  readonly digits: readonly number[]
  /** Virtual address of position 0, as decimal text; absent where only physical positions are known. */
  readonly virtual?: string
  /** Seed of the hash tables. */
  readonly seed: number
}

/** What the parser answers besides the sections; as {@link ImageFacts}, plus where `_text` is. */
export interface ParsedImage {
  readonly buildId: string
  readonly buildIdOffset: number
  readonly release: string
  readonly symbols: Record<string, number | [number] | null>
  readonly fields: Record<string, [number, number] | null>
  /** Position of `_text` in the window. */
  readonly textPosition: number
}

interface Kallsyms {
  readonly names: Names
  readonly addresses: Addresses
}

const MAX_NOTES = 65_536
const MAX_BTF = 64 * 1024 * 1024
/** NT_GNU_BUILD_ID: /usr/include/elf.h. */
const NT_GNU_BUILD_ID = 3

function kallsyms(window: Window, job: ParseJob): Kallsyms {
  let firstError: unknown
  if (job.tables !== undefined) {
    try {
      const { tables } = job
      const tokens = namedTokens(window, tables.tokenTable, tables.tokenIndex)
      const count = window.read(tables.numSyms, 4, 'kallsyms_num_syms').readUInt32LE()
      const names = decodeNames(window, tokens, { count, countAt: tables.numSyms, names: tables.names })
      return { names, addresses: decodeAddresses(window, tables, count) }
    } catch (error) {
      firstError = error
    }
  }
  for (const digits of job.digits) {
    try {
      const tokens = tokensByShape(window, digits)
      if (tokens === undefined) continue
      const place = findNames(window, tokens)
      if (place === undefined) {
        firstError ??= profileError(
          'kallsyms_names',
          `no table of names leads to the token table at image offset ${tokens.table}`,
        )
        continue
      }
      return { names: decodeNames(window, tokens, place), addresses: findAddresses(window, tokens, place) }
    } catch (error) {
      firstError ??= error
    }
  }
  throw (
    firstError ??
    profileError(
      'kallsyms',
      `VMCOREINFO names no tables, and none of ${job.digits.length} places in the image has the shape of a token table`,
    )
  )
}

/** Brings the symbols into ascending order, absolute ones first, and counts them from `_text`. */
function columnsOf({ names, addresses }: Kallsyms): { columns: SymbolColumns; text: number } {
  const { count, letters, starts, bytes } = names
  let text: number | undefined
  const wanted = Buffer.from('_text')
  for (let i = 0; i < count && text === undefined; i++) {
    const start = starts[i] as number
    if ((starts[i + 1] as number) - start !== wanted.length || addresses.absolute[i]) continue
    if (wanted.compare(bytes, start, start + wanted.length) === 0) text = addresses.values[i]
  }
  if (text === undefined) throw profileError('_text', `kallsyms has ${count} symbols, but no "_text"`)
  const offsets = new Int32Array(count)
  let ordered = true
  for (let i = 0; i < count; i++) {
    const value = addresses.values[i] as number
    offsets[i] = addresses.absolute[i] ? value : value - text
    if (
      i > 0 &&
      addresses.absolute[i] === addresses.absolute[i - 1] &&
      (offsets[i] as number) < (offsets[i - 1] as number)
    )
      ordered = false
    if (i > 0 && addresses.absolute[i] && !addresses.absolute[i - 1]) ordered = false
  }
  const { absolute } = addresses
  if (ordered) return { columns: { count, offsets, absolute, letters, starts, names: bytes }, text }
  const order = Uint32Array.from({ length: count }, (_, i) => i).sort(
    (a, b) =>
      (absolute[b] as number) - (absolute[a] as number) || (offsets[a] as number) - (offsets[b] as number) || a - b,
  )
  const sorted = {
    count,
    offsets: offsets.map((_, i) => offsets[order[i] as number] as number),
    absolute: absolute.map((_, i) => absolute[order[i] as number] as number),
    letters: letters.map((_, i) => letters[order[i] as number] as number),
    starts: new Uint32Array(count + 1),
    names: new Uint8Array(starts[count] as number),
  }
  let at = 0
  for (let i = 0; i < count; i++) {
    const from = order[i] as number
    sorted.starts[i] = at
    const name = bytes.subarray(starts[from] as number, starts[from + 1] as number)
    sorted.names.set(name, at)
    at += name.length
  }
  sorted.starts[count] = at
  return { columns: sorted, text }
}

function buildIdOf(window: Window, start: number, length: number): { buildId: string; at: number } {
  const notes = window.read(start, Math.min(length, MAX_NOTES), '.notes')
  let at = 0
  while (at + 12 <= notes.length) {
    const nameSize = notes.readUInt32LE(at)
    const size = notes.readUInt32LE(at + 4)
    const type = notes.readUInt32LE(at + 8)
    const name = at + 12
    const data = name + ((nameSize + 3) & ~3)
    const next = data + ((size + 3) & ~3)
    if (nameSize > 256 || next > notes.length || next <= at) break
    if (type === NT_GNU_BUILD_ID && nameSize === 4 && notes.toString('latin1', name, name + 4) === 'GNU\0')
      if (size >= 8 && size <= 64) return { buildId: notes.toString('hex', data, data + size), at: start + data }
    at = next
  }
  return { buildId: '', at: 0 }
}

function releaseOf(window: Window, at: number): string {
  const banner = window.read(at, 256, 'linux_banner').toString('latin1')
  const match = /^Linux version ([\x21-\x7e]{1,64}) /.exec(banner)
  if (match === null)
    throw profileError('linux_banner', 'it does not read "Linux version …": these are not its symbols')
  return match[1] as string
}

/**
 * Makes everything of a profile that is the same on every boot. Runs in the process without rights: the input is the
 * guest's.
 * @throws ERR_CLOUDAPP_PROFILE naming the part
 */
export function parseImage(
  window: Window,
  job: ParseJob,
): { image: ParsedImage; symbols: Uint8Array; types: Uint8Array } {
  const tables = kallsyms(window, job)
  const { columns, text } = columnsOf(tables)
  const { origin } = tables.addresses
  const symbols = encodeSymbols(columns, job.seed)
  const table = SymbolTable.open(symbols, 0n)
  const places: ParsedImage['symbols'] = {}
  for (const name of KNOWN_SYMBOLS) {
    const [symbol] = table.all(name)
    if (symbol === undefined) places[name] = null
    else places[name] = isAbsolute(columns, name) ? [Number(symbol.address)] : Number(BigInt.asIntN(32, symbol.address))
  }
  const textPosition = textAt(window, job, origin, text, places)
  const at = (name: string): number | undefined => {
    const place = places[name]
    return typeof place === 'number' ? textPosition + place : undefined
  }
  const banner = at('linux_banner')
  if (banner === undefined)
    throw profileError('linux_banner', 'kallsyms names no data: the kernel is built without CONFIG_KALLSYMS_ALL')
  const release = releaseOf(window, banner)
  const start = at('__start_BTF')
  const stop = at('__stop_BTF')
  if (start === undefined || stop === undefined)
    throw profileError('BTF', 'kallsyms names no __start_BTF: the kernel is built without CONFIG_DEBUG_INFO_BTF')
  if (stop <= start || stop - start > MAX_BTF)
    throw profileError('BTF', `__start_BTF to __stop_BTF are ${stop - start} bytes, at most ${MAX_BTF}`)
  const parts: BtfParts = scanBtf(window.read(start, stop - start, 'BTF'))
  const types = encodeTypes(parts, job.seed)
  const typeTable = TypeTable.open(types)
  const fields: ParsedImage['fields'] = {}
  for (const path of KNOWN_FIELDS) {
    if (!typeTable.has(path)) {
      fields[path] = null
      continue
    }
    const { offset, size } = typeTable.field(path)
    fields[path] = [offset, size]
  }
  const notes = at('__start_notes')
  const notesEnd = at('__stop_notes')
  const found =
    notes !== undefined && notesEnd !== undefined ? buildIdOf(window, notes, notesEnd - notes) : { buildId: '', at: 0 }
  const image: ParsedImage = {
    buildId: found.buildId,
    buildIdOffset: found.buildId === '' ? 0 : found.at - textPosition,
    release,
    symbols: places,
    fields,
    textPosition,
  }
  return { image, symbols, types }
}

function isAbsolute(columns: SymbolColumns, name: string): boolean {
  const wanted = Buffer.from(name)
  for (let i = 0; i < columns.count && columns.absolute[i]; i++) {
    const start = columns.starts[i] as number
    const end = columns.starts[i + 1] as number
    if (end - start === wanted.length && wanted.compare(columns.names, start, end) === 0) return true
  }
  return false
}

/** The position of `_text` in the window. */
function textAt(
  window: Window,
  job: ParseJob,
  origin: Addresses['origin'],
  text: number,
  places: ParsedImage['symbols'],
): number {
  if ('position' in origin) return origin.position + text
  if (job.virtual !== undefined) return Number(origin.virtual - BigInt(job.virtual)) + text
  // Only positions are known: the image starts on a 2 MiB boundary (CONFIG_PHYSICAL_ALIGN), and its banner tells which.
  const banner = places.linux_banner
  if (typeof banner !== 'number')
    throw profileError('linux_banner', 'kallsyms names no data: the kernel is built without CONFIG_KALLSYMS_ALL')
  const wanted = Buffer.from('Linux version ')
  for (let start = 0; start + banner + 64 <= window.size; start += 2 * 1024 * 1024) {
    if (start + banner < 0) continue
    if (Buffer.compare(window.probe(start + banner, wanted.length), wanted) === 0) return start
  }
  throw profileError('linux_banner', `it stands at none of the 2 MiB steps of ${window.size} bytes`)
}
