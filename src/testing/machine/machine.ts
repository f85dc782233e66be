import { type Space, virtualSpace } from '../../vmi/memory.js'
import type { Random } from '../random.js'
import { PageTables } from './tables.js'

/** Where one boot put things. */
export interface Placement {
  readonly levels: 4 | 5
  /** Virtual address of `_text`. */
  readonly text: bigint
  /** Physical address of `_text`. */
  readonly textPhysical: number
  /** Bytes of the kernel image. */
  readonly imageSize: number
  /** How far KASLR moved the image: KERNELOFFSET in VMCOREINFO. */
  readonly kernelOffset: bigint
  readonly pageOffset: bigint
  readonly vmallocBase: bigint
  readonly vmemmapBase: bigint
}

/** __START_KERNEL_map, arch/x86/include/asm/page_64_types.h. */
export const KERNEL_MAP = 0xffff_ffff_8000_0000n
/** Where `_text` lies without KASLR: CONFIG_PHYSICAL_START. */
const DEFAULT_TEXT = 0xffff_ffff_8100_0000n
/** MODULES_VADDR with KASLR's image size of 1 GiB, and MODULES_END: arch/x86/include/asm/pgtable_64_types.h. */
export const MODULES_START = 0xffff_ffff_c000_0000n
export const MODULES_END = 0xffff_ffff_ff00_0000n
const GIB = 1n << 30n
const MIB = 1 << 20

/** Bytes of the image's parts; each starts on a large page, as the kernel's do. */
export const SECTION = { text: 2 * MIB, rodata: 2 * MIB, data: 2 * MIB } as const
const IMAGE = SECTION.text + SECTION.rodata + SECTION.data

/** Draws what KASLR draws. Ranges as in arch/x86/mm/kaslr.c and arch/x86/boot/compressed/kaslr.c. */
export function place(random: Random, levels: 4 | 5, ram: number, kaslr: boolean): Placement {
  const slot = (below: number) => (kaslr ? random.below(below) : 0)
  // The image moves in steps of 2 MiB and must stay below 1 GiB; physically it needs room behind it.
  const kernelOffset = BigInt(slot(448)) * 2n * BigInt(MIB)
  const room = Math.max(1, Math.min(8, Math.floor((ram - IMAGE) / (4 * MIB)) - 1))
  const bases =
    levels === 5
      ? ([0xff11_0000_0000_0000n, 0xffa0_0000_0000_0000n, 0xffd4_0000_0000_0000n] as const)
      : ([0xffff_8880_0000_0000n, 0xffff_c900_0000_0000n, 0xffff_ea00_0000_0000n] as const)
  return {
    levels,
    text: DEFAULT_TEXT + kernelOffset,
    textPhysical: (1 + slot(room)) * 2 * MIB,
    imageSize: IMAGE,
    kernelOffset,
    pageOffset: bases[0] + BigInt(slot(4096)) * GIB,
    vmallocBase: bases[1] + BigInt(slot(4096)) * GIB,
    vmemmapBase: bases[2] + BigInt(slot(512)) * GIB,
  }
}

interface Region {
  readonly start: bigint
  readonly end: bigint
  readonly physical: number
}

/**
 * RAM, page tables and allocators of the synthetic guest. Addresses are the guest's kernel virtual addresses unless a
 * name says physical; writing to one that is not mapped is a mistake of the caller and throws.
 */
export class Machine {
  readonly ram: Uint8Array
  readonly placement: Placement
  readonly tables: PageTables
  readonly #view: DataView
  readonly #regions: Region[] = []
  #heap: number
  #top: number

  constructor(ramBytes: number, placement: Placement, root: number, random: Random) {
    this.ram = new Uint8Array(ramBytes)
    this.#view = new DataView(this.ram.buffer)
    this.placement = placement
    // What was allotted before differs from boot to boot.
    this.#heap = placement.textPhysical + placement.imageSize + random.below(64) * 4096
    this.#top = ramBytes - random.below(64) * 4096
    this.tables = new PageTables(this.ram, root, placement.levels, () => this.allocPages(1))
  }

  /** The kernel's own address space. */
  get space(): Space {
    return virtualSpace(BigInt(this.tables.root), this.placement.levels)
  }

  /** Takes zeroed memory of the direct map, as kmalloc does. */
  alloc(size: number, align = 64): bigint {
    const at = Math.ceil(this.#heap / align) * align
    if (at + size > this.#top) throw new RangeError(`the guest's RAM is too small: ask for more with 'memory'`)
    this.#heap = at + size
    return this.direct(at)
  }

  /** Takes zeroed pages; physical address of the first. */
  allocPages(count: number): number {
    const at = this.#top - count * 4096
    if (at < this.#heap) throw new RangeError(`the guest's RAM is too small: ask for more with 'memory'`)
    this.#top = at
    return at
  }

  /** The direct map's address of a physical one. */
  direct(physical: number): bigint {
    return this.placement.pageOffset + BigInt(physical)
  }

  /** Maps pages somewhere in the kernel's space, and remembers where they are. */
  mapRegion(start: bigint, size: number, rights: { write: boolean; execute: boolean }): Region {
    const pages = Math.ceil(size / 4096)
    const physical = this.allocPages(pages)
    this.tables.map(start, physical, pages * 4096, 4096, rights)
    return this.remember(start, pages * 4096, physical)
  }

  remember(start: bigint, size: number, physical: number): Region {
    const region = { start, end: start + BigInt(size), physical }
    this.#regions.push(region)
    return region
  }

  /** Physical address of a mapped kernel address. */
  physical(va: bigint): number {
    const { pageOffset, text, textPhysical, imageSize } = this.placement
    const direct = va - pageOffset
    if (direct >= 0n && direct < BigInt(this.ram.byteLength)) return Number(direct)
    const image = va - text
    if (image >= 0n && image < BigInt(imageSize)) return textPhysical + Number(image)
    const region = this.#regions.find((r) => va >= r.start && va < r.end)
    if (region !== undefined) return region.physical + Number(va - region.start)
    throw new RangeError(`0x${va.toString(16)} is not mapped in the synthetic guest`)
  }

  u64(va: bigint): bigint {
    return this.#view.getBigUint64(this.physical(va), true)
  }

  u32(va: bigint): number {
    return this.#view.getUint32(this.physical(va), true)
  }

  setU64(va: bigint, value: bigint): void {
    this.#view.setBigUint64(this.physical(va), BigInt.asUintN(64, value), true)
  }

  setU32(va: bigint, value: number): void {
    this.#view.setUint32(this.physical(va), value, true)
  }

  setU16(va: bigint, value: number): void {
    this.#view.setUint16(this.physical(va), value, true)
  }

  setU8(va: bigint, value: number): void {
    this.#view.setUint8(this.physical(va), value)
  }

  bytes(va: bigint, length: number): Uint8Array {
    const at = this.physical(va)
    return this.ram.subarray(at, at + length)
  }

  setBytes(va: bigint, bytes: Uint8Array): void {
    this.ram.set(bytes, this.physical(va))
  }

  /** Stores a NUL-terminated string in memory of its own; its address. */
  string(text: string): bigint {
    const bytes = new TextEncoder().encode(`${text}\0`)
    const at = this.alloc(bytes.byteLength, 8)
    this.setBytes(at, bytes)
    return at
  }
}
