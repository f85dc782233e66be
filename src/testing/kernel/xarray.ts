import type { Machine } from '../machine/machine.js'
import { StructRef } from '../machine/structs.js'
import type { Types } from './types.js'

/** XA_CHUNK_SHIFT: include/linux/xarray.h. */
const SHIFT = 6

/** An xarray (so also an IDR) in the guest, by its `xa_head`. */
export class XArray {
  #height = 0

  constructor(
    readonly machine: Machine,
    readonly types: Types,
    /** Address of `xa_head`. */
    readonly head: bigint,
    /** Address of the struct xarray. */
    readonly array: bigint,
  ) {}

  store(index: number, value: bigint): void {
    while (this.#height === 0 || index >= 2 ** (SHIFT * this.#height)) this.#grow()
    let node = this.#node(this.machine.u64(this.head))
    for (let shift = (this.#height - 1) * SHIFT; ; shift -= SHIFT) {
      const slot = node.at('slots') + BigInt(((index >>> shift) & 63) * 8)
      if (shift === 0) {
        this.#put(node, slot, value)
        return
      }
      const entry = this.machine.u64(slot)
      if (entry === 0n) {
        const child = this.#create(shift - SHIFT, node.address, (index >>> shift) & 63)
        this.#put(node, slot, child.address | 2n)
        node = child
      } else {
        node = this.#node(entry)
      }
    }
  }

  erase(index: number): void {
    this.store(index, 0n)
  }

  #put(node: StructRef, slot: bigint, value: bigint): void {
    const before = this.machine.u64(slot)
    this.machine.setU64(slot, value)
    if ((before === 0n) !== (value === 0n)) node.set('count', node.get('count') + (value === 0n ? -1n : 1n))
  }

  #grow(): void {
    const old = this.machine.u64(this.head)
    const top = this.#create(this.#height * SHIFT, 0n, 0)
    if (old !== 0n) {
      this.#put(top, top.at('slots'), old)
      this.#node(old).set('parent', top.address)
    }
    this.machine.setU64(this.head, top.address | 2n)
    this.#height++
  }

  #create(shift: number, parent: bigint, offset: number): StructRef {
    const node = this.#node(this.machine.alloc(this.types.sizeof('xa_node')) | 2n)
    return node.setAll({ shift, offset, parent, array: this.array })
  }

  #node(entry: bigint): StructRef {
    return new StructRef(this.machine, this.types, 'xa_node', entry - 2n)
  }
}
