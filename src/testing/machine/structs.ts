import type { Types } from '../kernel/types.js'
import type { Machine } from './machine.js'

/** A structure in the guest: its fields by name. */
export class StructRef {
  readonly #machine: Machine
  readonly #types: Types

  constructor(
    machine: Machine,
    types: Types,
    /** The structure's name. */
    readonly struct: string,
    readonly address: bigint,
  ) {
    this.#machine = machine
    this.#types = types
  }

  /** Address of a member. */
  at(path: string): bigint {
    return this.address + BigInt(this.#types.offset(this.struct, path))
  }

  /** True if this kernel's structure has the member. */
  has(path: string): boolean {
    return this.#types.hasField(this.struct, path)
  }

  /** A scalar member's value. */
  get(path: string): bigint {
    const { size, offset } = this.#types.field(this.struct, path)
    const at = this.address + BigInt(offset)
    if (size === 8) return this.#machine.u64(at)
    return BigInt(size === 4 ? this.#machine.u32(at) : this.#machine.u32(at) & (size === 2 ? 0xffff : 0xff))
  }

  /** Sets a scalar, or with a string a character array (cut to leave a NUL). */
  set(path: string, value: bigint | number | string): this {
    const { size, offset, type, bitOffset } = this.#types.field(this.struct, path)
    const at = this.address + BigInt(offset)
    if (typeof value === 'string') {
      const bytes = new Uint8Array(size)
      bytes.set(new TextEncoder().encode(value).subarray(0, size - 1))
      this.#machine.setBytes(at, bytes)
    } else if (type.bits > 0) {
      const shift = bitOffset % 8
      const mask = ((1 << type.bits) - 1) << shift
      this.#machine.setU8(at, (this.#machine.u32(at) & 0xff & ~mask) | ((Number(value) << shift) & mask))
    } else if (size === 8) {
      this.#machine.setU64(at, BigInt(value))
    } else if (size === 4) {
      this.#machine.setU32(at, Number(BigInt.asUintN(32, BigInt(value))))
    } else if (size === 2) {
      this.#machine.setU16(at, Number(BigInt.asUintN(16, BigInt(value))))
    } else if (size === 1) {
      this.#machine.setU8(at, Number(value))
    } else {
      throw new RangeError(`${this.struct}.${path} has ${size} bytes and is no scalar`)
    }
    return this
  }

  /** Sets each of the members this kernel has. */
  setAll(values: Readonly<Record<string, bigint | number | string>>): this {
    for (const [path, value] of Object.entries(values)) if (this.has(path)) this.set(path, value)
    return this
  }
}

/** Rings and chains of the kernel: include/linux/list.h. Arguments are addresses of list_head and hlist nodes. */
export class Lists {
  constructor(readonly machine: Machine) {}

  init(head: bigint): void {
    this.machine.setU64(head, head)
    this.machine.setU64(head + 8n, head)
  }

  /** Puts `node` behind all others. */
  addTail(head: bigint, node: bigint): void {
    this.#between(this.machine.u64(head + 8n), node, head)
  }

  /** Puts `node` before all others. */
  add(head: bigint, node: bigint): void {
    this.#between(head, node, this.machine.u64(head))
  }

  /** Takes `node` out and leaves it pointing at itself (list_del_init). */
  remove(node: bigint): void {
    const next = this.machine.u64(node)
    const prev = this.machine.u64(node + 8n)
    this.machine.setU64(prev, next)
    this.machine.setU64(next + 8n, prev)
    this.init(node)
  }

  /** Addresses of the nodes of a well-formed ring. */
  *nodes(head: bigint): Generator<bigint> {
    for (let at = this.machine.u64(head); at !== head; at = this.machine.u64(at)) yield at
  }

  addHash(head: bigint, node: bigint): void {
    const first = this.machine.u64(head)
    this.machine.setU64(node, first)
    this.machine.setU64(node + 8n, head)
    if (first !== 0n) this.machine.setU64(first + 8n, node)
    this.machine.setU64(head, node)
  }

  removeHash(node: bigint): void {
    const next = this.machine.u64(node)
    const pprev = this.machine.u64(node + 8n)
    if (pprev === 0n) return
    this.machine.setU64(pprev, next)
    if (next !== 0n) this.machine.setU64(next + 8n, pprev)
    this.machine.setU64(node, 0n)
    this.machine.setU64(node + 8n, 0n)
  }

  #between(prev: bigint, node: bigint, next: bigint): void {
    this.machine.setU64(node, next)
    this.machine.setU64(node + 8n, prev)
    this.machine.setU64(prev, node)
    this.machine.setU64(next + 8n, node)
  }
}

/**
 * Builds a balanced tree of rb_nodes in the order given. Colours are not kept: readers follow the links only.
 * Source: include/linux/rbtree_types.h.
 */
export function buildTree(machine: Machine, root: bigint, nodes: readonly bigint[]): void {
  const link = (from: number, to: number, parent: bigint): bigint => {
    if (from >= to) return 0n
    const middle = (from + to) >> 1
    const node = nodes[middle] as bigint
    machine.setU64(node, parent | 1n)
    machine.setU64(node + 16n, link(from, middle, node))
    machine.setU64(node + 8n, link(middle + 1, to, node))
    return node
  }
  machine.setU64(root, link(0, nodes.length, 0n))
}
