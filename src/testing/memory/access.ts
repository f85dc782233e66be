import { CellState, type Fault } from '../../vmi/memory.js'
import { PageWalker } from './paging.js'
import type { PointerReader } from './structures.js'

const MASK = (1n << 64n) - 1n
const PAGE = 4096

/** Reads spaces of a buffer of physical RAM. */
export class Access {
  readonly walker: PageWalker
  readonly #ram: Uint8Array
  readonly #view: DataView
  readonly #end: bigint

  constructor(ram: Uint8Array) {
    this.#ram = ram
    this.#view = new DataView(ram.buffer, ram.byteOffset, ram.byteLength)
    this.#end = BigInt(ram.byteLength)
    this.walker = new PageWalker(ram)
  }

  /** Copies out what can be read and returns the first fault. */
  copy(root: number, levels: number, at: bigint, into: Uint8Array, to: number, length: number): Fault | undefined {
    let first: Fault | undefined
    for (let done = 0; done < length; ) {
      const address = (at + BigInt(done)) & MASK
      let step = Math.min(length - done, PAGE - Number(address & 0xfffn))
      if (this.translate(root, levels, address)) {
        const from = this.walker.physical
        step = Math.min(length - done, this.walker.left)
        const there = Math.min(step, this.#ram.byteLength - from)
        into.set(this.#ram.subarray(from, from + there), to + done)
        if (there < step) {
          first ??= { reason: 'outside-ram', address: (address + BigInt(there)) & MASK, level: 0, entry: 0n }
        }
      } else {
        first ??= this.walker.fault(address)
      }
      done += step
    }
    return first
  }

  /** One column of one row: {@link Column}. */
  cell(
    root: number,
    levels: number,
    memory: PointerReader,
    element: bigint,
    path: readonly number[],
    into: Uint8Array,
    to: number,
    size: number,
  ): number {
    let at = element
    for (const offset of path.slice(0, -1)) {
      const next = memory.pointer((at + BigInt(offset)) & MASK)
      if (next === undefined) return CellState.Fault
      if (next === 0n) return CellState.Null
      at = next
    }
    const field = (at + BigInt(path.at(-1) as number)) & MASK
    if (this.copy(root, levels, field, into, to, size) === undefined) return CellState.Ok
    into.fill(0, to, to + size)
    return CellState.Fault
  }

  /** Reads pointers for the walks. */
  pointers(root: number, levels: number): PointerReader {
    const scratch = new Uint8Array(8)
    const scratchView = new DataView(scratch.buffer)
    let last: Fault | undefined
    return {
      pointer: (at) => {
        if (
          this.translate(root, levels, at) &&
          this.walker.left >= 8 &&
          this.walker.physical + 8 <= this.#ram.byteLength
        ) {
          return this.#view.getBigUint64(this.walker.physical, true)
        }
        last = this.copy(root, levels, at, scratch, 0, 8)
        return last === undefined ? scratchView.getBigUint64(0, true) : undefined
      },
      u8: (at) => {
        if (this.translate(root, levels, at)) return this.#ram[this.walker.physical]
        last = this.walker.fault(at)
        return undefined
      },
      fault: () => last as Fault,
    }
  }

  /** Translates an address of a space; the result, or the fault, lies in {@link walker}. Levels 0 is physical. */
  translate(root: number, levels: number, at: bigint): boolean {
    const walker = this.walker
    if (levels !== 0) return walker.translate(root, levels, at)
    if (at < this.#end) {
      walker.physical = Number(at)
      walker.left = Math.min(this.#ram.byteLength - walker.physical, 0x1000_0000)
      return true
    }
    walker.reason = 'outside-ram'
    walker.level = 0
    walker.entry = 0n
    return false
  }
}
