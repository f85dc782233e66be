import { type Machine, SECTION } from '../machine/machine.js'
import { StructRef } from '../machine/structs.js'
import type { Random } from '../random.js'
import type { KernelSymbolEntry } from './kallsyms.js'
import type { Types } from './types.js'

/** How a function of the synthetic kernel begins. */
export interface Entry {
  /** ENDBR64 first, as kernels built with CONFIG_X86_KERNEL_IBT (on since 5.18) have. */
  readonly endbr: boolean
}

const ENDBR64 = [0xf3, 0x0f, 0x1e, 0xfa]
/** The 5-byte NOP that stands where the tracer's call was compiled in: arch/x86/include/asm/nops.h. */
export const TRACE_NOP = [0x0f, 0x1f, 0x44, 0x00, 0x00]
/** PUSH RBP; MOV RBP, RSP; then loads, and POP RBP; RET. No byte of it reads as a branch. */
const BODY_START = [0x55, 0x48, 0x89, 0xe5]
const BODY = [0x48, 0x8b, 0x07]
const BODY_END = [0x5d, 0xc3]
const INT3 = 0xcc

const made = new Map<string, Uint8Array>()

/** The bytes of a function that can be traced, up to the next function. Not to be changed. */
export function functionBytes(size: number, { endbr }: Entry, traced = true): Uint8Array {
  const key = `${size} ${endbr} ${traced}`
  let bytes = made.get(key)
  if (bytes === undefined) {
    bytes = makeFunction(size, endbr, traced)
    made.set(key, bytes)
  }
  return bytes
}

function makeFunction(size: number, endbr: boolean, traced: boolean): Uint8Array {
  const start = [...(endbr ? ENDBR64 : []), ...(traced ? TRACE_NOP : []), ...BODY_START]
  const bytes = new Uint8Array(size).fill(INT3)
  let at = 0
  const put = (part: readonly number[]) => {
    bytes.set(part, at)
    at += part.length
  }
  put(start)
  while (at + BODY.length + BODY_END.length <= size - 4) put(BODY)
  put(BODY_END)
  return bytes
}

/** A MOV that no check follows, CALL rel32 and JMP rel32 as bytes. */
export function branch(opcode: 0xe8 | 0xe9, from: bigint, to: bigint): Uint8Array {
  const distance = BigInt.asIntN(64, to - (from + 5n))
  if (distance !== BigInt.asIntN(32, distance)) {
    throw new RangeError(`0x${to.toString(16)} is too far from 0x${from.toString(16)} for a branch`)
  }
  const bytes = new Uint8Array(5)
  bytes[0] = opcode
  new DataView(bytes.buffer).setInt32(1, Number(distance), true)
  return bytes
}

type SectionName = keyof typeof SECTION

/** The kernel image while it is filled: sections, and the symbols in them. */
export class Image {
  readonly symbols: KernelSymbolEntry[] = []
  readonly #byName = new Map<string, bigint>()
  readonly #starts: Record<SectionName, bigint>
  readonly #used: Record<SectionName, number> = { text: 0, rodata: 0, data: 0 }
  #percpu = 48

  constructor(
    readonly machine: Machine,
    readonly types: Types,
    readonly random: Random,
    readonly entry: Entry,
    /** Where per-CPU symbols count from: 0, or since Linux 6.15 an address in the image. */
    readonly percpuBase: bigint,
  ) {
    const { text } = machine.placement
    const rodata = text + BigInt(SECTION.text)
    this.#starts = { text, rodata, data: rodata + BigInt(SECTION.rodata) }
  }

  /** Address of a symbol. @throws RangeError if the kernel has none of that name */
  symbol(name: string): bigint {
    const address = this.#byName.get(name)
    if (address === undefined) throw new RangeError(`the synthetic kernel has no symbol ${name}`)
    return address
  }

  find(name: string): bigint | undefined {
    return this.#byName.get(name)
  }

  /** Names an address. */
  label(name: string, type: string, address: bigint, absolute = false): bigint {
    this.symbols.push(absolute ? { name, type, address, absolute } : { name, type, address })
    this.#byName.set(name, address)
    return address
  }

  /** The first free address of a section. */
  cursor(section: SectionName): bigint {
    return this.#starts[section] + BigInt(this.#used[section])
  }

  /** Takes room in a section. */
  take(section: SectionName, size: number, align = 16): bigint {
    const at = Math.ceil(this.#used[section] / align) * align
    if (at + size > SECTION[section]) throw new RangeError(`the synthetic kernel's ${section} is full`)
    this.#used[section] = at + size
    return this.#starts[section] + BigInt(at)
  }

  /** Adds a function; its size is rounded up to 16 bytes. */
  function(name: string, options: { size?: number; type?: 'T' | 't'; traced?: boolean } = {}): bigint {
    const { size = 48 + this.random.below(6) * 16, type = 'T', traced = true } = options
    const room = Math.ceil(size / 16) * 16
    const at = this.take('text', room)
    this.machine.setBytes(at, functionBytes(room, this.entry, traced))
    return this.label(name, type, at)
  }

  /** Adds a variable. */
  variable(name: string, size: number, type: 'D' | 'd' | 'B' | 'b' = 'D', align = 64): bigint {
    return this.label(name, type, this.take('data', size, align))
  }

  /** Adds a variable that is a structure. */
  struct(name: string, struct: string, type: 'D' | 'd' | 'B' | 'b' = 'D'): StructRef {
    return new StructRef(this.machine, this.types, struct, this.variable(name, this.types.sizeof(struct), type))
  }

  /** Adds a variable that holds a pointer or a number. */
  pointer(name: string, value: bigint, type: 'D' | 'd' | 'B' | 'b' = 'D'): bigint {
    const at = this.variable(name, 8, type, 8)
    this.machine.setU64(at, value)
    return at
  }

  /** Adds a per-CPU variable; its value in kallsyms. */
  percpu(name: string, size: number, align = 64): bigint {
    const at = Math.ceil(this.#percpu / align) * align
    this.#percpu = at + size
    const absolute = this.percpuBase === 0n
    return this.label(name, absolute ? 'A' : 'D', this.percpuBase + BigInt(at), absolute)
  }

  /** Bytes of one CPU's area. */
  get percpuSize(): number {
    return Math.ceil(this.#percpu / 4096) * 4096
  }
}
