import { decode, encode } from 'cborg'
import { type Space, virtualSpace } from '../memory.js'
import { profileError } from './errors.js'
import { KNOWN_FIELDS, KNOWN_REVISION, KNOWN_SYMBOLS, type KnownField, type KnownSymbol } from './known.js'
import type { Field } from './types.js'

/** A section of a profile: what must arrive when it is fetched. */
export interface SectionInfo {
  readonly name: string
  readonly size: number
  /** SHA-256, hexadecimal. */
  readonly sha256: string
}

/**
 * What is true of a kernel image on every boot. Symbol values are distances from `_text`; an absolute one (a per-CPU
 * offset before Linux 6.15) is an array of its value.
 */
export interface ImageFacts {
  /** Hexadecimal GNU build id; '' for a kernel linked without one. */
  readonly buildId: string
  /** Distance of the build id's bytes from `_text`; 0 if there is none. */
  readonly buildIdOffset: number
  /** `uname -r`. */
  readonly release: string
  readonly symbols: Readonly<Record<string, number | readonly [number] | null>>
  /** Offset and size. */
  readonly fields: Readonly<Record<string, readonly [number, number] | null>>
  readonly sections: readonly SectionInfo[]
}

/** Where one boot placed that image. */
export interface BootFacts {
  /** Virtual address of `_text`. */
  readonly textBase: bigint
  /** Physical address of `_text`. */
  readonly physicalBase: bigint
  /** Physical address of the kernel's own page-table root, `swapper_pg_dir`. */
  readonly root: bigint
  readonly levels: 4 | 5
  /** Start of the direct map (`page_offset_base`), of the vmalloc area and of `struct page`s. */
  readonly pageOffset: bigint
  readonly vmallocBase: bigint
  readonly vmemmapBase: bigint
  /** `nr_cpu_ids`: CPU numbers are below it. */
  readonly cpus: number
}

const MAX_HEADER = 1024 * 1024

/** The kernel profile of one boot: the pre-resolved part. All names ({@link KNOWN_SYMBOLS}, {@link KNOWN_FIELDS}) are at hand. */
export class KernelProfile {
  readonly image: ImageFacts
  readonly boot: BootFacts
  /** The kernel's address space. */
  readonly space: Space

  constructor(image: ImageFacts, boot: BootFacts) {
    this.image = image
    this.boot = boot
    this.space = virtualSpace(boot.root, boot.levels)
  }

  /** Opens a profile header. @throws ERR_CLOUDAPP_PROFILE */
  static open(header: Uint8Array): KernelProfile {
    const { image, boot } = fields(decodeBounded(header), 'header')
    return new KernelProfile(checkImage(image), checkBoot(boot))
  }

  /** The header as bytes, as a broker hands it out. */
  encode(): Uint8Array {
    return encode({ image: this.image, boot: this.boot })
  }

  /** Address of a known symbol. @throws ERR_CLOUDAPP_PROFILE if the kernel has none */
  symbol(name: KnownSymbol): bigint {
    const address = this.trySymbol(name)
    if (address === undefined)
      throw profileError(name, `the kernel has no symbol "${name}" (looked in kallsyms of ${this.image.release})`)
    return address
  }

  /** Address of a known symbol, or undefined if the kernel has none. */
  trySymbol(name: KnownSymbol): bigint | undefined {
    const value = this.image.symbols[name]
    if (value === null || value === undefined) return undefined
    return typeof value === 'number' ? this.boot.textBase + BigInt(value) : BigInt(value[0])
  }

  /** Place of a known field. @throws ERR_CLOUDAPP_PROFILE if the kernel has none */
  field(path: KnownField): Field {
    const place = this.image.fields[path]
    if (!place) throw profileError(path, `the types of ${this.image.release} have no "${path}"`)
    return { offset: place[0], size: place[1] }
  }

  /** Byte offset of a known field. @throws ERR_CLOUDAPP_PROFILE */
  offset(path: KnownField): number {
    return this.field(path).offset
  }

  /** Size of a known type or field. @throws ERR_CLOUDAPP_PROFILE */
  sizeOf(path: KnownField): number {
    return this.field(path).size
  }

  /** True if the kernel has the known field or type. */
  has(path: KnownField): boolean {
    return !!this.image.fields[path]
  }

  /** Physical address of a kernel virtual address in the direct map or the kernel image; undefined elsewhere. */
  physical(address: bigint): bigint | undefined {
    const { pageOffset, vmallocBase, textBase, physicalBase } = this.boot
    if (address >= pageOffset && address < vmallocBase) return address - pageOffset
    if (address >= KERNEL_MAP && address < KERNEL_MAP + IMAGE_SIZE) return address - textBase + physicalBase
    return undefined
  }
}

/** __START_KERNEL_map and the largest KERNEL_IMAGE_SIZE: arch/x86/include/asm/page_64_types.h. */
export const KERNEL_MAP = 0xffff_ffff_8000_0000n
export const IMAGE_SIZE = 0x4000_0000n

function decodeBounded(bytes: Uint8Array): unknown {
  if (bytes.byteLength > MAX_HEADER) throw profileError('header', `${bytes.byteLength} bytes, at most ${MAX_HEADER}`)
  try {
    return decode(bytes, { allowIndefinite: false })
  } catch (cause) {
    throw profileError('header', 'not CBOR', { cause })
  }
}

/** Reads an {@link ImageFacts} from CBOR, checking every value. @throws ERR_CLOUDAPP_PROFILE */
export function decodeImage(bytes: Uint8Array): ImageFacts {
  return checkImage(decodeBounded(bytes))
}

export function encodeImage(image: ImageFacts): Uint8Array {
  return encode({ ...image, revision: KNOWN_REVISION })
}

function fields(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || value instanceof Uint8Array)
    throw profileError('header', `${what} is no map`)
  return value as Record<string, unknown>
}

function text(value: unknown, what: string, pattern: RegExp): string {
  if (typeof value !== 'string' || !pattern.test(value)) throw profileError('header', `${what} is malformed`)
  return value
}

function integer(value: unknown, what: string, low: number, high: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < low || value > high)
    throw profileError('header', `${what} is no integer of ${low}…${high}`)
  return value
}

function checkImage(value: unknown): ImageFacts {
  const raw = fields(value, 'image')
  if (raw.revision !== undefined && raw.revision !== KNOWN_REVISION)
    throw profileError('header', 'made by another version of this library')
  const symbols: Record<string, number | readonly [number] | null> = {}
  const given = fields(raw.symbols, 'symbols')
  for (const name of KNOWN_SYMBOLS) {
    const entry = given[name]
    if (entry === null || entry === undefined) symbols[name] = null
    else if (Array.isArray(entry)) symbols[name] = [integer(entry[0], name, 0, 0xffff_ffff)]
    else symbols[name] = integer(entry, name, -0x8000_0000, 0x7fff_ffff)
  }
  const places: Record<string, readonly [number, number] | null> = {}
  const givenFields = fields(raw.fields, 'fields')
  for (const path of KNOWN_FIELDS) {
    const entry = givenFields[path]
    if (entry === null || entry === undefined) places[path] = null
    else if (!Array.isArray(entry)) throw profileError('header', `${path} is malformed`)
    else places[path] = [integer(entry[0], path, 0, 2 ** 24), integer(entry[1], path, 0, 2 ** 24)]
  }
  if (!Array.isArray(raw.sections) || raw.sections.length > 8) throw profileError('header', 'sections are malformed')
  const sections = raw.sections.map((entry: unknown): SectionInfo => {
    const section = fields(entry, 'section')
    return {
      name: text(section.name, 'section name', /^[a-z]{1,16}$/),
      size: integer(section.size, 'section size', 0, 256 * 1024 * 1024),
      sha256: text(section.sha256, 'section hash', /^[0-9a-f]{64}$/),
    }
  })
  return {
    buildId: text(raw.buildId, 'build id', /^(?:[0-9a-f]{2}){0,64}$/),
    buildIdOffset: integer(raw.buildIdOffset, 'build id offset', 0, 0x7fff_ffff),
    release: text(raw.release, 'release', /^[\x20-\x7e]{1,64}$/),
    symbols,
    fields: places,
    sections,
  }
}

function checkBoot(value: unknown): BootFacts {
  const raw = fields(value, 'boot')
  const address = (name: string): bigint => {
    const entry = raw[name]
    if (typeof entry === 'bigint' && entry >= 0n && entry < 1n << 64n) return entry
    if (typeof entry === 'number' && Number.isSafeInteger(entry) && entry >= 0) return BigInt(entry)
    throw profileError('header', `${name} is no address`)
  }
  const levels = raw.levels
  if (levels !== 4 && levels !== 5) throw profileError('header', 'levels are neither 4 nor 5')
  return {
    textBase: address('textBase'),
    physicalBase: address('physicalBase'),
    root: address('root'),
    levels,
    pageOffset: address('pageOffset'),
    vmallocBase: address('vmallocBase'),
    vmemmapBase: address('vmemmapBase'),
    cpus: integer(raw.cpus, 'cpus', 1, 65_536),
  }
}
