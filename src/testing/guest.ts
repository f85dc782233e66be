import { writeFile } from 'node:fs/promises'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import type { EventSource } from '../vmi/events/source.js'
import type { GuestVm } from '../vmi/guest.js'
import type { Space } from '../vmi/memory.js'
import { Attacks, type PatchOptions } from './attacks.js'
import { DEFAULT_MODULES, DEFAULT_TASKS } from './defaults.js'
import { type SyntheticEvent, SyntheticEvents } from './events.js'
import { type Built, buildKernel } from './kernel/build.js'
import type { ModuleBook, ModuleSpec, SyntheticModule } from './kernel/modules.js'
import { syscallNames } from './kernel/syscalls.js'
import type { SyntheticTask, TaskBook, TaskSpec } from './kernel/tasks.js'
import { Lies } from './lies.js'
import type { StructRef } from './machine/structs.js'
import { buildOptions, type SyntheticGuestOptions } from './options.js'
import { openSyntheticVm, type SyntheticVmOptions } from './vm.js'

/** A Linux guest that exists only in a buffer. Made by {@link syntheticGuest}. */
export class SyntheticGuest {
  /** The guest's RAM; the offset is the physical address. Writing to it is writing to the guest. */
  readonly ram: Uint8Array
  readonly release: string
  /** Ways in which this guest can deceive who reads it. */
  readonly lies: Lies
  readonly #built: Built
  readonly #attacks: Attacks
  readonly #events: SyntheticEvents

  private constructor(built: Built, release: string) {
    this.#built = built
    this.ram = built.machine.ram
    this.release = release
    this.lies = new Lies(built)
    this.#attacks = new Attacks(built)
    this.#events = new SyntheticEvents(this.ram, this.space)
  }

  /** See {@link syntheticGuest}. */
  static create(options: SyntheticGuestOptions = {}): SyntheticGuest {
    const whole = buildOptions(options)
    const guest = new SyntheticGuest(buildKernel(whole), whole.release)
    const tasks = options.tasks ?? DEFAULT_TASKS
    const given = new Set(tasks.map(({ pid }) => pid))
    const first: TaskSpec[] = [
      { pid: 1, comm: 'init' },
      { pid: 2, comm: 'kthreadd', kernelThread: true },
    ]
    for (const task of first) if (!given.has(task.pid)) guest.addTask(task)
    for (const task of tasks) guest.addTask(task)
    for (const module of options.modules ?? DEFAULT_MODULES) guest.addModule(module)
    if (options.busy === true) guest.#attacks.work()
    return guest
  }

  /** Number of vCPUs. */
  get cpus(): number {
    return this.#built.tasks.queues.areas.length
  }

  /** The kernel's address space. */
  get space(): Space {
    return this.#built.machine.space
  }

  /** Address of a kernel symbol. @throws ERR_CLOUDAPP_NOT_FOUND */
  symbol(name: string): bigint {
    const address = this.#built.kernel.image.find(name)
    if (address === undefined) {
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `the synthetic kernel has no symbol '${name}'`)
    }
    return address
  }

  /** Names of all kernel symbols. */
  symbols(): string[] {
    return this.#built.kernel.image.symbols.map(({ name }) => name)
  }

  /** Offset of a member, such as `offset('task_struct', 'se.group_node')`. @throws ERR_CLOUDAPP_NOT_FOUND */
  offset(struct: string, path: string): number {
    const { types } = this.#built.kernel
    if (!types.has(struct) || !types.hasField(struct, path)) {
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `the synthetic kernel has no member ${struct}.${path}`)
    }
    return types.offset(struct, path)
  }

  /** A structure of the guest, to look at and to change: `guest.struct('cred', at).set('uid.val', 0)`. */
  struct(name: string, address: bigint): StructRef {
    if (!this.#built.kernel.types.has(name)) {
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `the synthetic kernel has no struct ${name}`)
    }
    return this.#built.kernel.at(name, address)
  }

  /** Bytes at a kernel address, as a view of {@link ram}. */
  bytes(address: bigint, length: number): Uint8Array {
    return this.#checked(() => this.#built.machine.bytes(address, length))
  }

  /** The task's address, page-table root and the rest, hidden or not. @throws ERR_CLOUDAPP_NOT_FOUND */
  task(pid: number): SyntheticTask {
    return this.#checked(() => this.#built.tasks.get(pid))
  }

  /** Every task there is, threads and hidden ones too. */
  tasks(): SyntheticTask[] {
    return this.#built.tasks.all()
  }

  addTask(spec: TaskSpec): SyntheticTask {
    checkOptions('addTask', spec, [
      'pid',
      'comm',
      'uid',
      'gid',
      'ppid',
      'kernelThread',
      'threads',
      'state',
      'cpu',
      'cgroup',
    ])
    return this.#checked(() => this.#built.tasks.add(spec))
  }

  /** Ends a process: it leaves every book of the kernel. */
  exitTask(pid: number): void {
    this.#checked(() => this.#built.tasks.exit(pid))
  }

  /** Hides a process as a rootkit does, by default from the task list only; `from` names other books. */
  hideTask(pid: number, options: { readonly from?: readonly TaskBook[] } = {}): void {
    checkOptions('hideTask', options, ['from'])
    this.#checked(() => this.#built.tasks.hide(pid, options.from ?? ['list']))
  }

  /** @throws ERR_CLOUDAPP_NOT_FOUND */
  module(name: string): SyntheticModule {
    return this.#checked(() => this.#built.modules.get(name))
  }

  /** Every module there is, hidden ones too. */
  modules(): SyntheticModule[] {
    return this.#built.modules.all()
  }

  addModule(spec: ModuleSpec): SyntheticModule {
    checkOptions('addModule', spec, ['name', 'size', 'symbols', 'state'])
    return this.#checked(() => this.#built.modules.add(spec))
  }

  /** Hides a module as a rootkit does, by default from the module list and from sysfs; its code stays. */
  hideModule(name: string, options: { readonly from?: readonly ModuleBook[] } = {}): void {
    checkOptions('hideModule', options, ['from'])
    this.#checked(() => this.#built.modules.hide(name, options.from ?? ['list', 'kobject']))
  }

  /** Names of the system calls this kernel has. */
  syscalls(): string[] {
    return syscallNames().filter((name) => name !== undefined)
  }

  /**
   * Diverts a system call to `target`.
   *
   * @param name as in `__x64_sys_<name>`
   * @returns the address that was changed
   * @throws ERR_CLOUDAPP_NOT_FOUND if there is no such system call
   */
  patchSyscall(name: string, target: bigint, options: PatchOptions = {}): bigint {
    checkOptions('patchSyscall', options, ['by'])
    return this.#checked(() => this.#attacks.patchSyscall(name, target, options.by ?? 'jump'))
  }

  /** Lets an interrupt's gate lead to `target`. */
  patchInterrupt(vector: number, target: bigint): void {
    this.#checked(() => this.#attacks.patchInterrupt(vector, target))
  }

  /** Lets the SYSCALL instruction of a CPU (of all by default) enter at `target`: MSR LSTAR. */
  patchEntry(target: bigint, cpu?: number): void {
    this.#checked(() => this.#attacks.patchEntry(target, cpu))
  }

  /** Maps code that no book of the kernel knows; its address. */
  injectCode(size = 4096): bigint {
    return this.#checked(() => this.#attacks.injectCode(size))
  }

  /**
   * Lets something happen that traps: every subscription on any handle of this guest is told whose trap and predicate it
   * meets.
   *
   * @example
   * ```ts run
   * import { syntheticGuest } from '@cloudapp/sdk/testing'
   *
   * const guest = syntheticGuest()
   * const stream = await guest.vm().events.subscribe({
   *   trap: { kind: 'register', register: 'cr3' },
   *   captures: { next: { field: 'newValue' } },
   * })
   * guest.raise({ trap: { kind: 'register', register: 'cr3' }, fields: { newValue: 0x1000n } })
   * for await (const { columns } of stream) {
   *   assert.deepEqual([...columns.next], [0x1000n])
   *   break
   * }
   * ```
   */
  raise(event: SyntheticEvent): void {
    this.#events.raise(event)
  }

  /** The guest as a VM: what a source or a delegation gives. Each call opens a handle of its own. */
  vm(options: SyntheticVmOptions = {}): GuestVm & { readonly events: EventSource } {
    return openSyntheticVm(this.#built, this.#attacks, this.lies, this.#events, options)
  }

  /** Writes the RAM to a file that `raw:` opens. */
  async write(path: string): Promise<void> {
    await writeFile(path, this.ram.subarray(0, this.lies.end))
  }

  /** The parts below speak of mistakes in plain RangeErrors. */
  #checked<T>(work: () => T): T {
    try {
      return work()
    } catch (cause) {
      if (!(cause instanceof RangeError)) throw cause
      const code = /\bno (task|module|symbol|CPU|system call)\b/.test(cause.message)
        ? 'ERR_CLOUDAPP_NOT_FOUND'
        : 'ERR_CLOUDAPP_INVALID_ARGUMENT'
      throw new CloudAppError(code, cause.message, { cause })
    }
  }
}

/**
 * Makes a Linux guest in a buffer: page tables, VMCOREINFO, kallsyms, BTF, tasks, modules and the kernel's hooks, all as
 * the real kernel lays them out but with field offsets and addresses drawn from a seed. What attaches to a real VM
 * attaches to it with the same code. The same options give the same bytes.
 *
 * @throws ERR_CLOUDAPP_UNKNOWN_OPTION; ERR_CLOUDAPP_INVALID_ARGUMENT, also for RAM too small for what is asked
 *
 * @example
 * ```ts run
 * import { syntheticGuest } from '@cloudapp/sdk/testing'
 * import { Linux } from '@cloudapp/sdk/vmi'
 *
 * const guest = syntheticGuest({ seed: 7, tasks: [{ pid: 42, comm: 'miner', uid: 1000 }] })
 * guest.hideTask(42)
 * const linux = await Linux.attach(guest.vm())
 * const pids = (await linux.tasks()).map((task) => task.pid)
 * assert.deepEqual(pids, [1, 2])
 * ```
 */
export function syntheticGuest(options: SyntheticGuestOptions = {}): SyntheticGuest {
  try {
    return SyntheticGuest.create(options)
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', cause.message, { cause })
  }
}
