import { BufferMemory } from '../../../src/testing/memory.js'
import type { KnownField, KnownSymbol } from '../../../src/vmi/linux/known.js'
import { KernelProfile } from '../../../src/vmi/linux/profile.js'
import { GuestReader } from '../../../src/vmi/linux/read.js'

export const DIRECT = 0xffff_8880_0000_0000n
const ROOT = 0x1000
const SIZE = 1024 * 1024

/** A kernel of nothing but a page table (all RAM at {@link DIRECT}) and what a test writes into it. */
export class TinyKernel extends GuestReader {
  readonly profile: KernelProfile
  readonly ram: Buffer

  private constructor(ram: Buffer, profile: KernelProfile, paused: boolean) {
    super(new BufferMemory(ram, { paused: () => paused }), profile.space)
    this.ram = ram
    this.profile = profile
  }

  static create(
    symbols: Partial<Record<KnownSymbol, number>>,
    fields: Partial<Record<KnownField, readonly [number, number]>>,
    paused = true,
  ): TinyKernel {
    const ram = Buffer.alloc(SIZE)
    // PML4 entry for DIRECT, and one 1 GiB page: Intel SDM vol. 3A, 4.5.
    ram.writeBigUInt64LE(0x2003n, ROOT + 8 * Number((DIRECT >> 39n) & 511n))
    ram.writeBigUInt64LE(0x83n, 0x2000)
    const boot = {
      textBase: DIRECT,
      physicalBase: 0n,
      root: BigInt(ROOT),
      levels: 4,
      pageOffset: DIRECT,
      vmallocBase: DIRECT + (1n << 40n),
      vmemmapBase: DIRECT + (1n << 41n),
      cpus: 1,
    } as const
    const image = { buildId: '', buildIdOffset: 0, release: '6.9.9-test', symbols, fields, sections: [] }
    return new TinyKernel(ram, new KernelProfile(image, boot), paused)
  }

  pointer(at: number, to: number | bigint): void {
    this.ram.writeBigUInt64LE(typeof to === 'bigint' ? to : DIRECT + BigInt(to), at)
  }

  /** Links list heads (by position) into a ring. */
  ring(...heads: number[]): void {
    for (const [i, head] of heads.entries()) {
      const next = heads[(i + 1) % heads.length] as number
      this.pointer(head, next)
      this.pointer(next + 8, head)
    }
  }
}
