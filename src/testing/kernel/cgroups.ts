import type { StructRef } from '../machine/structs.js'
import type { Kernel } from './kernel.js'

/** CSS_SET_HASH_BITS: kernel/cgroup/cgroup.c. */
const BUCKETS = 128

/** Cgroups: one css_set for each path, tasks on its list. */
export class Cgroups {
  readonly #kernel: Kernel
  readonly #table: bigint
  readonly #root: StructRef
  readonly #sets = new Map<string, StructRef>()
  readonly #nodes = new Map<string, StructRef>()

  constructor(kernel: Kernel) {
    this.#kernel = kernel
    const { image, lists, types } = kernel
    this.#table = image.variable('css_set_table', BUCKETS * 8, 'b')
    const roots = image.variable('cgroup_roots', 16, 'D', 8)
    lists.init(roots)
    this.#root = image.struct('cgrp_dfl_root', 'cgroup_root')
    lists.addTail(roots, this.#root.at('root_list'))
    const top = kernel.at('cgroup', this.#root.at('cgrp'))
    this.#initCgroup(top, undefined, '/')
    const set = image.struct('init_css_set', 'css_set')
    this.#initSet(set, top)
    this.#sets.set('/', set)
    image.label('__end_of_cgroups', 'd', image.take('data', types.sizeof('list_head')))
  }

  /** Puts a task into the cgroup of `path`. */
  attach(task: StructRef, path: string): void {
    const set = this.#set(path)
    task.set('cgroups', set.address)
    this.#kernel.lists.addTail(set.at('tasks'), task.at('cg_list'))
    set.set('nr_tasks', set.get('nr_tasks') + 1n)
  }

  #set(path: string): StructRef {
    const known = this.#sets.get(path)
    if (known !== undefined) return known
    const cgroup = this.#kernel.create('cgroup')
    this.#initCgroup(cgroup, this.#kernel.at('cgroup', this.#root.at('cgrp')), path)
    const set = this.#kernel.create('css_set')
    this.#initSet(set, cgroup)
    this.#sets.set(path, set)
    return set
  }

  #initCgroup(cgroup: StructRef, parent: StructRef | undefined, path: string): void {
    const { lists } = this.#kernel
    for (const list of ['self.sibling', 'self.children', 'cset_links']) lists.init(cgroup.at(list))
    for (let i = 0; i < 14; i++) lists.init(cgroup.at(`e_csets[${i}]`))
    cgroup.setAll({
      'self.cgroup': cgroup.address,
      'self.id': this.#sets.size + 1,
      'self.parent': parent?.at('self') ?? 0n,
      level: parent === undefined ? 0 : 1,
      root: this.#root.address,
      kn: this.#node(path).address,
    })
    if (parent !== undefined) lists.addTail(parent.at('self.children'), cgroup.at('self.sibling'))
  }

  /** The directory of `path` in the cgroup file system, and those above it. */
  #node(path: string): StructRef {
    const known = this.#nodes.get(path)
    if (known !== undefined) return known
    const node = this.#kernel.create('kernfs_node')
    const name = new TextEncoder().encode(`${path.slice(path.lastIndexOf('/') + 1)}\0`)
    const text = this.#kernel.machine.alloc(name.length)
    this.#kernel.machine.setBytes(text, name)
    const above = path.slice(0, path.lastIndexOf('/')) || '/'
    node.setAll({ name: text, parent: path === '/' ? 0n : this.#node(above).address })
    this.#nodes.set(path, node)
    return node
  }

  #initSet(set: StructRef, cgroup: StructRef): void {
    const { lists, random } = this.#kernel
    for (const list of ['tasks', 'mg_tasks', 'dying_tasks', 'task_iters', 'cgrp_links']) lists.init(set.at(list))
    set.setAll({ refcount: 1, dom_cset: set.address, dfl_cgrp: cgroup.address, 'subsys[0]': cgroup.at('self') })
    lists.addHash(this.#table + BigInt(random.below(BUCKETS) * 8), set.at('hlist'))
    const link = this.#kernel.create('cgrp_cset_link')
    link.setAll({ cgrp: cgroup.address, cset: set.address })
    lists.addTail(cgroup.at('cset_links'), link.at('cset_link'))
    lists.addTail(set.at('cgrp_links'), link.at('cgrp_link'))
  }
}
