import { buildTree, StructRef } from '../machine/structs.js'
import type { Areas } from './areas.js'
import { functionBytes } from './image.js'
import type { Kernel } from './kernel.js'

/** A kernel module. */
export interface ModuleSpec {
  /** At most 55 bytes. */
  readonly name: string
  /** Bytes of its memory in all, rounded up to pages; 16 KiB by default and at least. About half is code. */
  readonly size?: number
  /** Functions in its code, beside `init_module` and `cleanup_module`. */
  readonly symbols?: readonly string[]
  /** `live` by default. */
  readonly state?: 'live' | 'coming' | 'going'
}

/** A module as it stands in the guest. */
export interface SyntheticModule {
  readonly name: string
  /** Address of the struct module. */
  readonly address: bigint
  /** Its code, `[start, end)`. */
  readonly text: { readonly start: bigint; readonly end: bigint }
  /** Bytes of all its memory. */
  readonly size: number
  /** Addresses of its functions. */
  readonly symbols: ReadonlyMap<string, bigint>
}

/** The kernel's books a module stands in. */
export type ModuleBook = 'list' | 'kobject' | 'tree' | 'vmalloc'

/** enum module_state and enum mod_mem_type: include/linux/module.h. */
export const MODULE_STATES = {
  MODULE_STATE_LIVE: 0,
  MODULE_STATE_COMING: 1,
  MODULE_STATE_GOING: 2,
  MODULE_STATE_UNFORMED: 3,
}
const STATES = { live: 0, coming: 1, going: 2 } as const
const MEM = { text: 0, data: 1, rodata: 2 } as const
const FUNCTION_BYTES = 64
const SYMBOL_BYTES = 24
/** STT_FUNC, STB_GLOBAL: include/uapi/linux/elf.h. */
const GLOBAL_FUNCTION = 0x12

interface Entry extends SyntheticModule {
  readonly ref: StructRef
  readonly areas: readonly bigint[]
  /** Tree nodes: the address range's start and the mod_tree_node's. */
  readonly nodes: readonly { start: bigint; node: bigint }[]
}

/** Modules with their memory and everything the kernel knows them by. */
export class Modules {
  readonly #kernel: Kernel
  readonly #areas: Areas
  readonly #list: bigint
  readonly #kset: StructRef
  readonly #tree: StructRef
  readonly #entries = new Map<string, Entry>()
  #inTree: { start: bigint; node: bigint }[] = []

  constructor(kernel: Kernel, areas: Areas) {
    this.#kernel = kernel
    this.#areas = areas
    const { image, lists } = kernel
    this.#list = image.variable('modules', 16, 'D', 8)
    lists.init(this.#list)
    this.#kset = kernel.create('kset')
    lists.init(this.#kset.at('list'))
    this.#kset.setAll({ 'kobj.name': kernel.machine.string('module'), 'kobj.kref.refcount.refs.counter': 1 })
    image.pointer('module_kset', this.#kset.address)
    this.#tree = image.struct('mod_tree', 'mod_tree_root')
    // Code built into the kernel that takes parameters has a kobject there too, and no module.
    for (const name of ['kernel', 'printk', 'tcp_cubic']) this.#kobject(kernel.create('module_kobject'), name)
  }

  /** A module by name. @throws RangeError if there is none */
  get(name: string): SyntheticModule {
    return this.#entry(name)
  }

  ref(name: string): StructRef {
    return this.#entry(name).ref
  }

  all(): SyntheticModule[] {
    return [...this.#entries.values()]
  }

  /** Address of the `modules` list head. */
  get head(): bigint {
    return this.#list
  }

  add(spec: ModuleSpec): SyntheticModule {
    const { lists } = this.#kernel
    if (this.#entries.has(spec.name)) throw new RangeError(`the synthetic guest already has a module ${spec.name}`)
    const pages = Math.max(4, Math.ceil((spec.size ?? 0) / 4096))
    const functions = [
      'init_module',
      'cleanup_module',
      ...(spec.symbols ?? [`${spec.name}_open`, `${spec.name}_ioctl`]),
    ]
    const textPages = Math.max(pages >> 1, Math.ceil((functions.length * FUNCTION_BYTES) / 4096))
    const head = Math.ceil(this.#kernel.types.sizeof('module') / 64) * 64
    const tables = functions.reduce((sum, name) => sum + name.length + 2 + SYMBOL_BYTES, SYMBOL_BYTES + 2)
    const data = { rodata: 1, data: Math.max(2, pages - textPages - 1, Math.ceil((head + tables) / 4096)) }
    const memory = this.#place(textPages * 4096, data.rodata * 4096, data.data * 4096)
    const ref = this.#kernel.at('module', memory.data)
    const symbols = this.#text(functions, memory.text, textPages * 4096)
    ref.setAll({ state: STATES[spec.state ?? 'live'], name: spec.name, refcnt: 0 })
    ref.set('refcnt.counter', 1)
    for (const list of ['source_list', 'target_list']) lists.init(ref.at(list))
    ref.setAll({ init: symbols.get('init_module') as bigint, exit: symbols.get('cleanup_module') as bigint })
    const nodes = memory.describe(ref)
    this.#symbols(ref, symbols, memory.data + BigInt(head))
    this.#kobject(this.#kernel.at('module_kobject', ref.at('mkobj')), spec.name, ref.address)
    lists.add(this.#list, ref.at('list'))
    const entry: Entry = {
      name: spec.name,
      address: ref.address,
      text: { start: memory.text, end: memory.text + BigInt(textPages * 4096) },
      size: (textPages + data.rodata + data.data) * 4096,
      symbols,
      ref,
      areas: memory.areas,
      nodes,
    }
    this.#entries.set(spec.name, entry)
    this.#inTree.push(...nodes)
    this.#plant()
    return entry
  }

  /** Takes a module out of some of the kernel's books; its memory stays. */
  hide(name: string, books: readonly ModuleBook[]): void {
    const { lists } = this.#kernel
    const entry = this.#entry(name)
    for (const book of books) {
      if (book === 'list') lists.remove(entry.ref.at('list'))
      if (book === 'kobject') lists.remove(entry.ref.at('mkobj.kobj.entry'))
      if (book === 'vmalloc') for (const area of entry.areas) this.#areas.forget(area)
      if (book === 'tree') {
        this.#inTree = this.#inTree.filter((node) => !entry.nodes.includes(node))
        this.#plant()
      }
    }
  }

  #entry(name: string): Entry {
    const entry = this.#entries.get(name)
    if (entry === undefined) throw new RangeError(`the synthetic guest has no module ${name}`)
    return entry
  }

  /** Maps a module's memory: one area before 6.4, one of each kind since. */
  #place(text: number, rodata: number, data: number) {
    const rx = { write: false, execute: true }
    const ro = { write: false, execute: false }
    const rw = { write: true, execute: false }
    if (this.#kernel.types.has('module_memory')) {
      const kinds = {
        text: this.#areas.map(text, rx),
        rodata: this.#areas.map(rodata, ro),
        data: this.#areas.map(data, rw),
      }
      const sizes = { text, rodata, data }
      return {
        ...kinds,
        areas: Object.values(kinds),
        describe: (ref: StructRef) =>
          (['text', 'rodata', 'data'] as const).map((kind) => {
            const path = `mem[${MEM[kind]}]`
            ref.setAll({
              [`${path}.base`]: kinds[kind],
              [`${path}.size`]: sizes[kind],
              [`${path}.mtn.mod`]: ref.address,
            })
            return { start: kinds[kind], node: ref.at(`${path}.mtn.node`) }
          }),
      }
    }
    const base = this.#areas.map(text + rodata + data, rw)
    this.#areas.protect(base, text, rx)
    this.#areas.protect(base + BigInt(text), rodata, ro)
    const describe = (ref: StructRef) => {
      ref.setAll({
        'core_layout.base': base,
        'core_layout.size': text + rodata + data,
        'core_layout.text_size': text,
        'core_layout.ro_size': text + rodata,
        'core_layout.ro_after_init_size': text + rodata,
        'core_layout.mtn.mod': ref.address,
      })
      return [{ start: base, node: ref.at('core_layout.mtn.node') }]
    }
    return { text: base, rodata: base + BigInt(text), data: base + BigInt(text + rodata), areas: [base], describe }
  }

  #text(functions: readonly string[], start: bigint, size: number): Map<string, bigint> {
    const { machine, image } = this.#kernel
    machine.setBytes(start, new Uint8Array(size).fill(0xcc))
    return new Map(
      functions.map((name, i) => {
        const at = start + BigInt(i * FUNCTION_BYTES)
        machine.setBytes(at, functionBytes(FUNCTION_BYTES, image.entry))
        return [name, at]
      }),
    )
  }

  /** Elf64_Sym and names, as the kernel keeps them for kallsyms: kernel/module/kallsyms.c. */
  #symbols(ref: StructRef, symbols: ReadonlyMap<string, bigint>, at: bigint): void {
    const { machine } = this.#kernel
    const names = ['', ...symbols.keys()]
    const table = at
    const strings = table + BigInt(names.length * SYMBOL_BYTES)
    const text = Buffer.from(`${names.join('\0')}\0`)
    machine.setBytes(strings, text)
    let name = 1
    let entry = table + BigInt(SYMBOL_BYTES)
    for (const [symbol, address] of symbols) {
      new StructRef(machine, this.#kernel.types, 'elf64_sym', entry).setAll({
        st_name: name,
        st_info: GLOBAL_FUNCTION,
        st_shndx: 1,
        st_value: address,
        st_size: FUNCTION_BYTES,
      })
      name += symbol.length + 1
      entry += BigInt(SYMBOL_BYTES)
    }
    const types = strings + BigInt(text.byteLength)
    machine.setBytes(types, Buffer.from(`\0${'t'.repeat(symbols.size)}`))
    ref.setAll({
      kallsyms: ref.at('core_kallsyms'),
      'core_kallsyms.symtab': table,
      'core_kallsyms.num_symtab': names.length,
      'core_kallsyms.strtab': strings,
      'core_kallsyms.typetab': types,
    })
  }

  #kobject(ref: StructRef, name: string, module = 0n): void {
    const { lists, machine } = this.#kernel
    ref.setAll({
      mod: module,
      'kobj.name': machine.string(name),
      'kobj.parent': this.#kset.at('kobj'),
      'kobj.kset': this.#kset.address,
      'kobj.kref.refcount.refs.counter': 1,
      'kobj.state_initialized': 1,
      'kobj.state_in_sysfs': 1,
    })
    lists.addTail(this.#kset.at('list'), ref.at('kobj.entry'))
  }

  /** Builds both trees of the latch: include/linux/rbtree_latch.h. */
  #plant(): void {
    const sorted = [...this.#inTree].sort((a, b) => (a.start < b.start ? -1 : 1))
    for (const side of [0, 1]) {
      const nodes = sorted.map(({ node }) => node + BigInt(side * 24))
      buildTree(this.#kernel.machine, this.#tree.at(`root.tree[${side}]`), nodes)
    }
    this.#tree.setAll({ addr_min: sorted[0]?.start ?? 0n, addr_max: sorted.at(-1)?.start ?? 0n })
  }
}
