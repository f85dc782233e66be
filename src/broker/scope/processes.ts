import type { ProcessScope } from '../../capabilities/scope.js'
import { processInScope } from '../../capabilities/scope.js'
import { CloudAppError } from '../../errors.js'
import type { GuestVm } from '../../vmi/guest.js'
import { Linux, type Task } from '../../vmi/linux/index.js'
import { type GuestMemory, type Space, virtualSpace, type WalkPlan, type WalkResult } from '../../vmi/memory.js'

/** A process of the guest, with memory of its own. */
export interface ScopedProcess {
  readonly task: Task
  /** `task_struct.start_time`: no two processes at one address have the same. */
  readonly start: bigint
  /** Path in cgroup v2; undefined where it was not asked for or could not be read. */
  readonly cgroup: string | undefined
  readonly space: Space
}

/** Cgroups are nested no deeper; a longer chain of parents is a lie. */
const MAX_DEPTH = 64

/** The list of tasks is not read again for an address space that is not in it until so many ms later. */
const REFRESH_MS = 20

/**
 * Which processes a scope names, by the broker's own reading of the guest. Names and cgroups are what the guest's kernel
 * says they are: a process may call itself anything, and a kernel that is taken over can say anything of any process.
 */
export class ScopedProcesses {
  readonly #scopes: readonly ProcessScope[] | undefined
  readonly #memory: GuestMemory
  readonly #linux: Linux
  readonly #cgroups: CgroupLayout | undefined
  readonly #columns: WalkPlan['columns']
  #known = new Map<Space, ScopedProcess>()
  #listed = Number.NEGATIVE_INFINITY
  #listing: Promise<void> | undefined

  private constructor(scopes: readonly ProcessScope[] | undefined, linux: Linux, cgroups: CgroupLayout | undefined) {
    this.#scopes = scopes
    this.#memory = linux.memory
    this.#linux = linux
    this.#cgroups = cgroups
    const at = (...path: Parameters<Linux['profile']['offset']>[0][]) => path.map((step) => linux.profile.offset(step))
    this.#columns = [
      { path: at('task_struct.pid'), size: 4 },
      { path: at('task_struct.start_time'), size: 8 },
      { path: at('task_struct.comm'), size: 16 },
      { path: at('task_struct.mm', 'mm_struct.pgd'), size: 8 },
    ]
  }

  /** @throws CloudAppError what attaching to the kernel throws */
  static async open(vm: GuestVm, scopes: readonly ProcessScope[] | undefined): Promise<ScopedProcesses> {
    const linux = await Linux.attach(vm)
    const byCgroup = scopes?.some(({ cgroup }) => cgroup !== undefined) === true
    return new ScopedProcesses(scopes, linux, byCgroup ? await cgroupLayout(linux) : undefined)
  }

  /** The kernel's own address space. */
  get kernel(): Space {
    return this.#linux.profile.space
  }

  /** The last address of a process: the lower half of what its page table translates. */
  get lastUserAddress(): bigint {
    return (1n << (this.#linux.profile.boot.levels === 5 ? 56n : 47n)) - 1n
  }

  /** The processes of the scope, as they are now. */
  async list(): Promise<ScopedProcess[]> {
    this.#listing ??= this.#refresh().finally(() => {
      this.#listing = undefined
    })
    await this.#listing
    return [...this.#known.values()]
  }

  /** The process of the scope whose address space this is now, or undefined. */
  async of(space: Space): Promise<ScopedProcess | undefined> {
    const known = this.#known.get(space)
    if (known !== undefined && (await this.holds(known))) return known
    if (performance.now() - this.#listed >= REFRESH_MS) await this.list()
    const found = this.#known.get(space)
    return found !== undefined && (await this.holds(found)) ? found : undefined
  }

  /**
   * True if the process still is what it was: the same start, name, cgroup and page table. A process that ended has no
   * page table, one that started another program has another (fs/exec.c exec_mmap, kernel/exit.c exit_mm).
   */
  async holds({ task, start, cgroup, space }: ScopedProcess): Promise<boolean> {
    const plan: WalkPlan = {
      kind: 'array',
      space: this.kernel,
      head: task.task,
      count: 1,
      stride: 8,
      columns: this.#columns,
      limit: 1,
    }
    const [now] = (await this.#memory.walk([plan])) as [WalkResult]
    if (now.cells.some((cell) => cell !== 0)) return false
    const [pid, began, comm, pgd] = now.columns.map((bytes) => Buffer.from(bytes)) as [Buffer, Buffer, Buffer, Buffer]
    const root = this.#linux.profile.physical(pgd.readBigUInt64LE())
    if (root === undefined || this.#spaceOf(root) !== space || pid.readInt32LE() !== task.pid) return false
    if (began.readBigUInt64LE() !== start) return false
    const end = comm.indexOf(0)
    const name = comm.toString('utf8', 0, end < 0 ? comm.length : end)
    const group = this.#cgroups === undefined ? undefined : await this.#cgroupOf(this.#cgroups, task.task)
    return group === cgroup && this.#inScope(name, group)
  }

  async #refresh(): Promise<void> {
    const { tasks } = await this.#linux.taskList()
    const known = new Map<Space, ScopedProcess>()
    for (const task of tasks) {
      if (task.kernelThread || task.dtb === 0n) continue
      // A name that does not fit saves the look at the cgroup, which costs more.
      if (!this.#mayFit(task.comm)) continue
      const cgroup = this.#cgroups === undefined ? undefined : await this.#cgroupOf(this.#cgroups, task.task)
      if (!this.#inScope(task.comm, cgroup)) continue
      const start = await this.#startOf(task.task)
      if (start === undefined) continue
      const space = this.#spaceOf(task.dtb)
      // Of processes that share their memory (vfork), the first stands for all.
      if (!known.has(space)) known.set(space, { task, start, cgroup, space })
    }
    this.#known = known
    this.#listed = performance.now()
  }

  #spaceOf(root: bigint): Space {
    return virtualSpace(root, this.#linux.profile.boot.levels)
  }

  #inScope(name: string, cgroup: string | undefined): boolean {
    return this.#scopes === undefined || processInScope(this.#scopes, { name, cgroup })
  }

  #mayFit(comm: string): boolean {
    return this.#scopes === undefined || this.#scopes.some(({ name }) => name === undefined || name === comm)
  }

  async #startOf(task: bigint): Promise<bigint | undefined> {
    const [start] = await this.#linux.readPointers([
      task + BigInt(this.#linux.profile.offset('task_struct.start_time')),
    ])
    return start
  }

  async #cgroupOf(layout: CgroupLayout, task: bigint): Promise<string | undefined> {
    const follow = async (at: bigint, offset: number) =>
      (await this.#linux.readPointers([at + BigInt(offset)]))[0] ?? 0n
    let node = task
    for (const offset of layout.toNode) {
      node = await follow(node, offset)
      if (node === 0n) return undefined
    }
    let path = ''
    for (let depth = 0; depth < MAX_DEPTH; depth++) {
      const parent = await follow(node, layout.parent)
      // The root of the tree has no name.
      if (parent === 0n) return path === '' ? '/' : path
      const name = await this.#nameAt(await follow(node, layout.name))
      if (name === undefined) return undefined
      path = `/${name}${path}`
      node = parent
    }
    return undefined
  }

  /** A name that is one part of a path; undefined for anything else. */
  async #nameAt(at: bigint): Promise<string | undefined> {
    try {
      // NAME_MAX, include/uapi/linux/limits.h.
      const name = await this.#linux.readString(at, 256)
      return name === '' || name.includes('/') || name === '.' || name === '..' ? undefined : name
    } catch (error) {
      if (CloudAppError.is(error, 'ERR_CLOUDAPP_TRANSLATION')) return undefined
      throw error
    }
  }
}

interface CgroupLayout {
  /** task → css_set → cgroup → kernfs_node */
  readonly toNode: readonly number[]
  readonly parent: number
  readonly name: number
}

async function cgroupLayout(linux: Linux): Promise<CgroupLayout> {
  const types = await linux.types()
  return {
    toNode: [types.offset('task_struct.cgroups'), types.offset('css_set.dfl_cgrp'), types.offset('cgroup.kn')],
    // Renamed in Linux 6.15.
    parent: types.offset(types.has('kernfs_node.parent') ? 'kernfs_node.parent' : 'kernfs_node.__parent'),
    name: types.offset('kernfs_node.name'),
  }
}
