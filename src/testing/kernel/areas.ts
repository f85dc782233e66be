import { MODULES_END, MODULES_START } from '../machine/machine.js'
import { buildTree, type StructRef } from '../machine/structs.js'
import type { Kernel } from './kernel.js'

/** VM_ALLOC: include/linux/vmalloc.h. */
const VM_ALLOC = 2

/** Memory the kernel has mapped for itself among the modules, and vmalloc's books about it. */
export class Areas {
  readonly #kernel: Kernel
  readonly #list: bigint
  readonly #tree: bigint
  readonly #areas: { area: StructRef; start: bigint }[] = []
  #next: bigint

  constructor(kernel: Kernel) {
    this.#kernel = kernel
    const { image, lists, machine, types } = kernel
    // The first module is loaded at a random page of the first 4 MiB: arch/x86/kernel/module.c.
    this.#next = MODULES_START + BigInt((1 + kernel.random.below(1024)) * 4096)
    if (types.has('vmap_node')) {
      const node = kernel.create('vmap_node')
      image.pointer('vmap_nodes', node.address)
      const count = image.variable('nr_vmap_nodes', 4, 'd', 4)
      machine.setU32(count, 1)
      this.#list = node.at('busy.head')
      this.#tree = node.at('busy.root')
      lists.init(node.at('lazy.head'))
    } else {
      this.#list = image.variable('vmap_area_list', 16, 'D', 8)
      this.#tree = image.variable('vmap_area_root', 8, 'b', 8)
    }
    lists.init(this.#list)
  }

  /** Maps `size` bytes, with a guard page behind them; `caller` is a symbol that is said to have asked for them. */
  map(size: number, rights: { write: boolean; execute: boolean }, caller = 'module_alloc'): bigint {
    const { machine, lists, image } = this.#kernel
    const start = this.#next
    const pages = Math.ceil(size / 4096) * 4096
    if (start + BigInt(pages) > MODULES_END) throw new RangeError('the module area is full')
    this.#next = start + BigInt(pages + 4096)
    machine.mapRegion(start, pages, rights)
    const area = this.#kernel.create('vmap_area')
    const vm = this.#kernel.create('vm_struct')
    area.setAll({ va_start: start, va_end: start + BigInt(pages + 4096), vm: vm.address })
    vm.setAll({
      addr: start,
      size: pages + 4096,
      flags: VM_ALLOC,
      nr_pages: pages / 4096,
      caller: image.symbol(caller) + 16n,
    })
    lists.addTail(this.#list, area.at('list'))
    this.#areas.push({ area, start })
    this.#areas.sort((a, b) => (a.start < b.start ? -1 : 1))
    buildTree(
      machine,
      this.#tree,
      this.#areas.map((entry) => entry.area.at('rb_node')),
    )
    return start
  }

  /** Changes what pages of an area allow. */
  protect(start: bigint, size: number, rights: { write: boolean; execute: boolean }): void {
    const { machine } = this.#kernel
    machine.tables.map(start, machine.physical(start), Math.ceil(size / 4096) * 4096, 4096, rights)
  }

  /** Takes an area out of vmalloc's books; its pages stay mapped. */
  forget(start: bigint): void {
    const at = this.#areas.findIndex((entry) => entry.start === start)
    if (at < 0) return
    const [entry] = this.#areas.splice(at, 1)
    this.#kernel.lists.remove((entry as { area: StructRef }).area.at('list'))
    buildTree(
      this.#kernel.machine,
      this.#tree,
      this.#areas.map(({ area }) => area.at('rb_node')),
    )
  }
}
