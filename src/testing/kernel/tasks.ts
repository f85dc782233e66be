import type { StructRef } from '../machine/structs.js'
import { Cgroups } from './cgroups.js'
import type { Kernel } from './kernel.js'
import { RunQueues, type RunState } from './runqueues.js'
import { XArray } from './xarray.js'

/** A thread of a process beside its first. */
export interface ThreadSpec {
  readonly pid: number
  /** The process's name by default. */
  readonly comm?: string
}

/** A process, or a thread of the kernel. */
export interface TaskSpec {
  readonly pid: number
  /** At most 15 bytes are kept, as in the kernel. */
  readonly comm: string
  /** 0 by default. */
  readonly uid?: number
  /** As `uid` by default. */
  readonly gid?: number
  /** 1 by default; of kernel threads 2, of pid 1 and 2 it is 0. */
  readonly ppid?: number
  /** No memory of its own, and PF_KTHREAD set. */
  readonly kernelThread?: boolean
  readonly threads?: readonly ThreadSpec[]
  /** Sleeping by default. `running` makes it the CPU's current task. */
  readonly state?: RunState
  /** CPU of a task that does not sleep; 0 by default. */
  readonly cpu?: number
  /** `/` by default. */
  readonly cgroup?: string
}

/** A task as it stands in the guest. */
export interface SyntheticTask {
  readonly pid: number
  readonly tgid: number
  readonly ppid: number
  readonly comm: string
  readonly uid: number
  readonly kernelThread: boolean
  /** Address of the task_struct. */
  readonly address: bigint
  /** Physical address of the page-table root; 0n for a kernel thread. */
  readonly dtb: bigint
  /** Nanoseconds since boot. */
  readonly startTime: bigint
}

/** The kernel's books a task stands in. */
export type TaskBook = 'list' | 'pids' | 'cgroup' | 'runqueue' | 'threads'

/** PF_KTHREAD: include/linux/sched.h. */
const PF_KTHREAD = 0x0020_0000
/** PIDTYPE_PID, TGID, PGID, SID: include/linux/pid_types.h. */
const PID_TYPES = [0, 1, 2, 3] as const

interface Entry extends SyntheticTask {
  readonly task: StructRef
}

/** Tasks with everything that hangs on them. */
export class Tasks {
  readonly cgroups: Cgroups
  readonly queues: RunQueues
  readonly #kernel: Kernel
  readonly #init: StructRef
  readonly #namespace: StructRef
  readonly #pids: XArray
  readonly #entries = new Map<number, Entry>()
  readonly #creds = new Map<string, bigint>()
  #clock = 1_000_000n

  constructor(kernel: Kernel, cpus: number) {
    this.#kernel = kernel
    const { image, lists, machine, types } = kernel
    this.cgroups = new Cgroups(kernel)
    this.queues = new RunQueues(kernel, cpus)
    this.#namespace = image.struct('init_pid_ns', 'pid_namespace')
    this.#pids = new XArray(machine, types, this.#namespace.at('idr.idr_rt.xa_head'), this.#namespace.at('idr.idr_rt'))
    this.#namespace.set('idr.idr_rt.xa_flags', 0x0400_0004)
    const memory = image.struct('init_mm', 'mm_struct')
    memory.setAll({ pgd: image.symbol('swapper_pg_dir'), mm_users: 2, mm_count: 1 })
    const signal = image.struct('init_signals', 'signal_struct')
    lists.init(signal.at('thread_head'))
    this.#init = image.struct('init_task', 'task_struct')
    for (let cpu = 0; cpu < cpus; cpu++) {
      const idle = cpu === 0 ? this.#init : kernel.create('task_struct')
      this.#prepare(idle, signal, memory.address)
      idle.setAll({ comm: `swapper/${cpu}`, flags: PF_KTHREAD, group_leader: idle.address })
      idle.setAll({ real_parent: this.#init.address, parent: this.#init.address })
      this.queues.put(idle, cpu, 'sleeping', 0)
      this.queues.setIdle(cpu, idle.address)
      if (cpu === 0) lists.addTail(signal.at('thread_head'), idle.at('thread_node'))
    }
  }

  /** A task by its number. @throws RangeError if there is none */
  get(pid: number): SyntheticTask {
    return this.#entry(pid)
  }

  /** All tasks, threads too, in the order they were made. */
  all(): SyntheticTask[] {
    return [...this.#entries.values()]
  }

  ref(pid: number): StructRef {
    return this.#entry(pid).task
  }

  /** The first entry of the kernel's task list is this one's `tasks`. */
  get init(): StructRef {
    return this.#init
  }

  add(spec: TaskSpec): SyntheticTask {
    const { lists } = this.#kernel
    const kernelThread = spec.kernelThread ?? (spec.pid === 2 || spec.ppid === 2)
    const ppid = spec.ppid ?? (spec.pid <= 2 ? 0 : kernelThread ? 2 : 1)
    const signal = this.#kernel.create('signal_struct')
    lists.init(signal.at('thread_head'))
    const memory = kernelThread ? undefined : this.#memory(spec.comm)
    const whole = { ...spec, kernelThread, ppid, uid: spec.uid ?? 0, gid: spec.gid ?? spec.uid ?? 0 }
    const leader = this.#thread(whole, spec.pid, spec.comm, signal, memory)
    const task = leader.task
    task.set('group_leader', task.address)
    if (task.has('thread_group')) lists.init(task.at('thread_group'))
    lists.addTail(this.#init.at('tasks'), task.at('tasks'))
    const parent = this.#entries.get(ppid)?.task ?? this.#init
    lists.addTail(parent.at('children'), task.at('sibling'))
    if (memory !== undefined) memory.mm.set('owner', task.address)
    this.queues.put(task, spec.cpu ?? 0, spec.state ?? 'sleeping', spec.pid)
    for (const thread of spec.threads ?? []) {
      const own = this.#thread(whole, thread.pid, thread.comm ?? spec.comm, signal, memory)
      own.task.set('group_leader', task.address)
      if (task.has('thread_group')) lists.addTail(task.at('thread_group'), own.task.at('thread_group'))
      this.queues.put(own.task, 0, 'sleeping', thread.pid)
    }
    signal.set('nr_threads', 1 + (spec.threads?.length ?? 0))
    return leader
  }

  /** Takes a task, with its threads, out of some of the kernel's books. */
  hide(pid: number, books: readonly TaskBook[]): void {
    const { lists } = this.#kernel
    const leader = this.#entry(pid)
    const group = [...this.#entries.values()].filter((entry) => entry.tgid === leader.tgid)
    for (const entry of leader.pid === leader.tgid ? group : [leader]) {
      const { task } = entry
      for (const book of books) {
        if (book === 'list' && entry.pid === entry.tgid) lists.remove(task.at('tasks'))
        if (book === 'pids') this.#pids.erase(entry.pid)
        if (book === 'cgroup') lists.remove(task.at('cg_list'))
        if (book === 'runqueue') lists.remove(task.at('se.group_node'))
        if (book === 'threads' && entry.pid !== entry.tgid) lists.remove(task.at('thread_node'))
      }
    }
  }

  /** Ends a process: it and its threads leave every book. */
  exit(pid: number): void {
    const { lists } = this.#kernel
    const { tgid } = this.#entry(pid)
    this.hide(tgid, ['list', 'pids', 'cgroup', 'runqueue', 'threads'])
    for (const entry of [...this.#entries.values()].filter((e) => e.tgid === tgid)) {
      lists.remove(entry.task.at('sibling'))
      for (const type of PID_TYPES) lists.removeHash(entry.task.at(`pid_links[${type}]`))
      this.#entries.delete(entry.pid)
    }
  }

  #entry(pid: number): Entry {
    const entry = this.#entries.get(pid)
    if (entry === undefined) throw new RangeError(`the synthetic guest has no task ${pid}`)
    return entry
  }

  #thread(
    spec: { pid: number; ppid: number; uid: number; gid: number; kernelThread: boolean; cgroup?: string },
    pid: number,
    comm: string,
    signal: StructRef,
    memory: { mm: StructRef; dtb: number } | undefined,
  ): Entry {
    if (!Number.isInteger(pid) || pid < 1 || pid >= 1 << 22) throw new RangeError(`${pid} is no pid`)
    if (this.#entries.has(pid)) throw new RangeError(`the synthetic guest already has a task ${pid}`)
    const { lists } = this.#kernel
    const task = this.#kernel.create('task_struct')
    this.#prepare(task, signal, memory?.mm.address ?? 0n)
    const parent = this.#entries.get(spec.ppid)?.task.address ?? this.#init.address
    const cred = this.#cred(spec.uid, spec.gid)
    this.#clock += BigInt(1_000_000 + this.#kernel.random.below(90_000_000))
    task.setAll({
      __state: 1,
      state: 1,
      usage: 1,
      flags: spec.kernelThread ? PF_KTHREAD : 0x0040_0000,
      mm: memory?.mm.address ?? 0n,
      active_mm: memory?.mm.address ?? 0n,
      pid,
      tgid: spec.pid,
      real_parent: parent,
      parent,
      comm,
      cred,
      real_cred: cred,
      start_time: this.#clock,
      start_boottime: this.#clock,
      stack_canary: BigInt(this.#kernel.random.u32()) << 8n,
    })
    lists.addTail(signal.at('thread_head'), task.at('thread_node'))
    this.#number(task, signal, pid, pid === spec.pid)
    this.cgroups.attach(task, spec.cgroup ?? '/')
    const entry: Entry = {
      pid,
      tgid: spec.pid,
      ppid: spec.ppid,
      comm: Buffer.from(comm).subarray(0, 15).toString(),
      uid: spec.uid,
      kernelThread: spec.kernelThread,
      address: task.address,
      dtb: BigInt(memory?.dtb ?? 0),
      startTime: this.#clock,
      task,
    }
    this.#entries.set(pid, entry)
    return entry
  }

  #prepare(task: StructRef, signal: StructRef, memory: bigint): void {
    const { lists } = this.#kernel
    for (const list of ['tasks', 'children', 'sibling', 'thread_node', 'cg_list']) lists.init(task.at(list))
    if (task.has('thread_group')) lists.init(task.at('thread_group'))
    const cred = this.#cred(0, 0)
    task.setAll({ signal: signal.address, active_mm: memory, cred, real_cred: cred })
  }

  /** Gives the task its struct pid, and that a place in the IDR. */
  #number(task: StructRef, signal: StructRef, pid: number, leader: boolean): void {
    const number = this.#kernel.create('pid', this.#kernel.types.sizeof('upid'))
    number.setAll({ count: 1, level: 0, 'numbers[0].nr': pid, 'numbers[0].ns': this.#namespace.address })
    task.set('thread_pid', number.address)
    for (const type of leader ? PID_TYPES : [0]) {
      this.#kernel.lists.addHash(number.at(`tasks[${type}]`), task.at(`pid_links[${type}]`))
      if (leader) signal.set(`pids[${type}]`, number.address)
    }
    this.#pids.store(pid, number.address)
    this.#namespace.setAll({
      pid_allocated: this.#namespace.get('pid_allocated') + 1n,
      'idr.idr_next': pid + 1,
    })
    if (pid === 1) this.#namespace.set('child_reaper', task.address)
  }

  #cred(uid: number, gid: number): bigint {
    const key = `${uid}:${gid}`
    const known = this.#creds.get(key)
    if (known !== undefined) return known
    const cred = uid === 0 && gid === 0 ? this.#kernel.image.struct('init_cred', 'cred') : this.#kernel.create('cred')
    const ids = { uid, suid: uid, euid: uid, fsuid: uid, gid, sgid: gid, egid: gid, fsgid: gid }
    for (const [name, id] of Object.entries(ids)) cred.set(`${name}.val`, id)
    cred.setAll({ 'usage.counter': 1, cap_effective: uid === 0 ? 0x1ff_ffff_ffffn : 0n })
    this.#creds.set(key, cred.address)
    return cred.address
  }

  /** Memory of a process: a page of code, and one of stack with its command line. */
  #memory(comm: string): { mm: StructRef; dtb: number } {
    const { machine, random } = this.#kernel
    const mm = this.#kernel.create('mm_struct')
    const dtb = machine.tables.fork()
    const code = 0x7ffd_0000_0000n + BigInt(random.below(1 << 10)) * 0x20_0000n
    const stack = code + 0x1f_0000n
    machine.tables.map(code, machine.allocPages(1), 4096, 4096, { write: false, execute: true, user: true }, dtb)
    const page = machine.allocPages(1)
    machine.tables.map(stack, page, 4096, 4096, { write: true, execute: false, user: true }, dtb)
    const line = Buffer.from(`/usr/bin/${comm}\0`)
    machine.setBytes(machine.direct(page) + 0x800n, line)
    mm.setAll({
      pgd: machine.direct(dtb),
      mm_users: 1,
      mm_count: 1,
      map_count: 2,
      total_vm: 2,
      task_size: 0x7fff_ffff_f000n,
      start_code: code,
      end_code: code + 4096n,
      start_stack: stack + 0x800n,
      arg_start: stack + 0x800n,
      arg_end: stack + 0x800n + BigInt(line.byteLength),
    })
    return { mm, dtb }
  }
}
