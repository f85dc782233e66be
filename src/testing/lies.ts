import { CloudAppError } from '../errors.js'
import type { Built } from './kernel/build.js'

/** A list of the kernel that can be damaged. */
export type LieList = 'tasks' | 'modules'

/**
 * Ways in which a guest can deceive who reads it. Each changes the guest's memory as an intruder in its kernel could;
 * no reader may crash, hang or exhaust itself over any of them.
 */
export class Lies {
  readonly #built: Built
  #end: number

  constructor(built: Built) {
    this.#built = built
    this.#end = built.machine.ram.byteLength
  }

  /** Bytes of RAM that are left. */
  get end(): number {
    return this.#end
  }

  /** The list's last element leads to its first element instead of to its head. */
  cyclicList(list: LieList = 'tasks'): void {
    const { machine, kernel } = this.#built
    const nodes = [...kernel.lists.nodes(this.#head(list))]
    machine.setU64(nodes.at(-1) as bigint, nodes[0] as bigint)
  }

  /** The list goes on for `count` more elements (100,000 by default), each a few bytes behind the other. */
  longList(list: LieList = 'tasks', count = 100_000): void {
    const { machine, kernel } = this.#built
    const head = this.#head(list)
    const last = [...kernel.lists.nodes(head)].at(-1) as bigint
    const first = machine.alloc(count * 16, 4096)
    machine.setU64(last, first)
    for (let i = 0; i < count; i++) {
      const node = first + BigInt(i * 16)
      machine.setU64(node, i === count - 1 ? head : node + 16n)
      machine.setU64(node + 8n, i === 0 ? last : node - 16n)
    }
    machine.setU64(head + 8n, first + BigInt((count - 1) * 16))
  }

  /** The list's `index`-th element (the first by default) leads to an address; a non-canonical one by default. */
  wildPointer(list: LieList = 'tasks', address = 0x0123_4567_89ab_cdefn, index = 0): bigint {
    const { machine, kernel } = this.#built
    const node = [...kernel.lists.nodes(this.#head(list))][index]
    if (node === undefined)
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `the ${list} list has no element ${index}`)
    machine.setU64(node, address)
    return node
  }

  /** Fills a character array to its end, so that no NUL ends it; or all memory behind a pointer to a string. */
  endlessString(what: 'comm' | 'module-name' | 'kobject-name' = 'comm'): void {
    const { machine, tasks, modules, kernel } = this.#built
    const module = modules.all()[0]
    if (what === 'comm') machine.setBytes(tasks.ref(1).at('comm'), new Uint8Array(16).fill(0x41))
    else if (module === undefined) throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', 'the guest has no module')
    else if (what === 'module-name')
      machine.setBytes(modules.ref(module.name).at('name'), new Uint8Array(56).fill(0x41))
    else {
      const text = machine.alloc(1 << 20, 4096)
      machine.setBytes(text, new Uint8Array(1 << 20).fill(0x41))
      kernel.at('kobject', modules.ref(module.name).at('mkobj.kobj')).set('name', text)
    }
  }

  /**
   * The kernel's page tables point at themselves: every entry of the root that was empty leads to the root, so that its
   * 2^57 bytes seem to be mapped many times over. What was mapped stays so.
   */
  selfPageTables(): void {
    const { tables } = this.#built.machine
    for (let i = 256; i < 512; i++) {
      const at = tables.root + i * 8
      if ((tables.entry(at) & 1n) === 0n) tables.setEntry(at, BigInt(tables.root) | 0x63n)
    }
  }

  /** Clears the page-table entry that maps an address; what it lies in is not mapped any more. */
  unmap(address: bigint): void {
    const { at } = this.#leaf(address)
    this.#built.machine.tables.setEntry(at, 0n)
  }

  /** Sets a reserved bit in the page-directory entry of an address that a large page maps. */
  reservedBit(address: bigint): void {
    const { tables } = this.#built.machine
    const { at, level } = this.#leaf(address)
    if (level === 1)
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'no large page maps the address', { address })
    tables.setEntry(at, tables.entry(at) | 0x2000n)
  }

  /** Lets the page of an address lie behind the end of RAM. */
  outsideRam(address: bigint): void {
    const { tables } = this.#built.machine
    const { at } = this.#leaf(address)
    tables.setEntry(at, (tables.entry(at) & ~0x000f_ffff_ffff_f000n) | 0x000f_ff00_0000_0000n)
  }

  /** Cuts the RAM off at `bytes`, as a file that was not written to its end. Handles opened later see only that. */
  truncate(bytes: number): void {
    if (!Number.isSafeInteger(bytes) || bytes < 0 || bytes > this.#built.machine.ram.byteLength) {
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${bytes} is not within the RAM`)
    }
    this.#end = bytes
  }

  /** Gives the BTF offsets that lead out of it: of its strings, its types, the names in it, or the members' types. */
  wildBtf(what: 'strings' | 'types' | 'names' | 'members' | 'length' = 'strings'): void {
    const { machine, parts } = this.#built
    const at = parts.btf
    if (at === undefined) throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', 'the guest has no BTF')
    // struct btf_header, include/uapi/linux/btf.h: hdr_len at 4, type_off 8, type_len 12, str_off 16, str_len 20.
    const types = at + BigInt(machine.u32(at + 4n) + machine.u32(at + 8n))
    const length = machine.u32(at + 12n)
    if (what === 'strings') machine.setU32(at + 16n, 0x7fff_fff0)
    else if (what === 'types') machine.setU32(at + 8n, 0x7fff_fff0)
    else if (what === 'length') machine.setU32(at + 12n, 0xffff_fff0)
    else if (what === 'names') this.#wildNames(types, length)
    else for (let i = 0; i + 12 <= length; i += 12) machine.setU32(types + BigInt(i + 4), 0xffff_ffff)
  }

  /** Lets every type's name lead out of the strings. Records: Documentation/bpf/btf.rst. */
  #wildNames(types: bigint, length: number): void {
    const { machine } = this.#built
    for (let at = 0; at < length; ) {
      const record = types + BigInt(at)
      const info = machine.u32(record + 4n)
      if (machine.u32(record) !== 0) machine.setU32(record, 0x7fff_ffff)
      at += 12 + behindRecord((info >>> 24) & 31, info & 0xffff)
    }
  }

  /** Wipes VMCOREINFO. */
  eraseVmcoreinfo(): void {
    const { machine, parts } = this.#built
    for (const at of parts.vmcoreinfo) machine.setBytes(at, new Uint8Array(4096))
  }

  /** Damages a table of kallsyms: every byte of it becomes `fill` (255 by default). */
  wildKallsyms(table: string = 'kallsyms_names', fill = 0xff): void {
    const { machine, parts } = this.#built
    const at = parts.kallsyms.get(table)
    if (at === undefined) throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `the kernel has no table ${table}`)
    const sorted = [...parts.kallsyms.values()].sort((a, b) => Number(a - b))
    const next = sorted.find((other) => other > at) ?? at + 512n
    machine.setBytes(at, new Uint8Array(Number(next - at)).fill(fill))
  }

  #head(list: LieList): bigint {
    return list === 'tasks' ? this.#built.tasks.init.at('tasks') : this.#built.modules.head
  }

  #leaf(address: bigint): { at: number; level: number } {
    const leaf = this.#built.machine.tables.leaf(address)
    if (leaf === undefined) throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', 'nothing maps the address', { address })
    return leaf
  }
}

/** Bytes that follow a BTF record of a kind (BTF_KIND_*, include/uapi/linux/btf.h) with so many members. */
function behindRecord(kind: number, members: number): number {
  switch (kind) {
    case 1: // INT
    case 14: // VAR
      return 4
    case 3: // ARRAY
      return 12
    case 4: // STRUCT
    case 5: // UNION
    case 15: // DATASEC
      return members * 12
    case 6: // ENUM
    case 13: // FUNC_PROTO
      return members * 8
    default:
      return 0
  }
}
