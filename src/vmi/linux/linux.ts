import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import type { BreakpointTrap } from '../events/program.js'
import type { GuestVm, KernelProfileParts } from '../guest.js'
import type { GuestMemory } from '../memory.js'
import { profileError } from './errors.js'
import type { Module } from './modules.js'
import { listModules, type ModuleList, type ModuleOptions } from './modules.js'
import { perCpuAddress } from './percpu.js'
import { KernelProfile } from './profile.js'
import { GuestReader } from './read.js'
import { Resolver, type Where } from './resolver.js'
import { SymbolTable } from './symbols.js'
import type { Task } from './tasks.js'
import { listTasks, type TaskList, type TaskOptions } from './tasks.js'
import { TypeTable } from './types.js'

export interface AttachOptions {
  readonly signal?: AbortSignal
}

/** `[start, end)` of kernel virtual addresses. */
export interface AddressRange {
  readonly start: bigint
  readonly end: bigint
}

/**
 * The Linux kernel inside a VM. Needs `memory.read` on it and no configuration: where the kernel lies, its symbols and
 * its types come from the guest itself ({@link GuestVm.kernel}).
 *
 * A reader of a live guest sees a moving target. A structure that changes under a walk is walked again, a bounded number
 * of times, before it is called corrupt; pause the VM for a look in which everything belongs together.
 */
export class Linux extends GuestReader {
  readonly vm: GuestVm
  /** The pre-resolved facts of this kernel and boot. */
  readonly profile: KernelProfile
  readonly #parts: KernelProfileParts
  #symbols: Promise<SymbolTable> | undefined
  #types: Promise<TypeTable> | undefined

  private constructor(vm: GuestVm, memory: GuestMemory, parts: KernelProfileParts, profile: KernelProfile) {
    super(memory, profile.space)
    this.vm = vm
    this.profile = profile
    this.#parts = parts
  }

  /**
   * Attaches to the kernel running in `vm`.
   * @throws ERR_CLOUDAPP_DENIED if the handle holds no right to read memory; ERR_CLOUDAPP_PROFILE if no kernel is found,
   *   or a part of it is missing: `details.part` names it
   */
  static async attach(vm: GuestVm, options: AttachOptions = {}): Promise<Linux> {
    checkOptions('Linux.attach', options, ['signal'])
    if (vm.memory === undefined)
      throw new CloudAppError('ERR_CLOUDAPP_DENIED', `attaching to ${vm.identity.name} needs the right memory.read`, {
        right: 'memory.read',
        vm: vm.identity.name,
      })
    const parts = await vm.kernel(options)
    return new Linux(vm, vm.memory, parts, KernelProfile.open(parts.header))
  }

  /** `uname -r`. */
  get release(): string {
    return this.profile.image.release
  }

  /** GNU build id, hexadecimal; '' if the kernel has none. */
  get buildId(): string {
    return this.profile.image.buildId
  }

  /** CPU numbers are below this (`nr_cpu_ids`). */
  get cpus(): number {
    return this.profile.boot.cpus
  }

  /** Kernel text, `_stext … _etext`. */
  get text(): AddressRange {
    return { start: this.profile.symbol('_stext'), end: this.profile.symbol('_etext') }
  }

  /** Text freed after boot, `_sinittext … _einittext`; undefined where the kernel names none. */
  get initText(): AddressRange | undefined {
    return this.#range('_sinittext', '_einittext')
  }

  /** Entry code (system calls, interrupts), a part of {@link text}; undefined where the kernel names none. */
  get entryText(): AddressRange | undefined {
    return this.#range('__entry_text_start', '__entry_text_end')
  }

  #range(first: '_sinittext' | '__entry_text_start', last: '_einittext' | '__entry_text_end') {
    const start = this.profile.trySymbol(first)
    const end = this.profile.trySymbol(last)
    return start === undefined || end === undefined ? undefined : { start, end }
  }

  /** All symbols of the kernel image (not of modules). Fetched on the first call, then kept. */
  symbols(): Promise<SymbolTable> {
    this.#symbols ??= this.#section('symbols').then((bytes) => SymbolTable.open(bytes, this.profile.boot.textBase))
    this.#symbols.catch(() => {
      this.#symbols = undefined
    })
    return this.#symbols
  }

  /** All types of the kernel image. Fetched on the first call, then kept. */
  types(): Promise<TypeTable> {
    this.#types ??= this.#section('types').then((bytes) => TypeTable.open(bytes))
    this.#types.catch(() => {
      this.#types = undefined
    })
    return this.#types
  }

  async #section(name: string): Promise<Uint8Array> {
    const info = this.profile.image.sections.find((section) => section.name === name)
    if (info === undefined) throw profileError(name, `the profile of ${this.release} has no section "${name}"`)
    const bytes = await this.#parts.section(name)
    if (bytes.byteLength !== info.size)
      throw profileError(name, `the section has ${bytes.byteLength} bytes, not ${info.size}`)
    return bytes
  }

  /** Address of a kernel symbol. @throws ERR_CLOUDAPP_PROFILE naming it if the kernel has none */
  async symbol(name: string): Promise<bigint> {
    return (await this.symbols()).get(name)
  }

  /** Address of a kernel symbol, or undefined. */
  async trySymbol(name: string): Promise<bigint | undefined> {
    return (await this.symbols()).find(name)
  }

  /**
   * A trap at an instruction of the kernel, for an event program.
   *
   * @param where a symbol of the kernel image, or the address of the first byte of an instruction
   * @throws ERR_CLOUDAPP_PROFILE if the kernel has no such symbol
   */
  async breakpoint(where: string | bigint): Promise<BreakpointTrap> {
    const at = typeof where === 'bigint' ? where : await this.symbol(where)
    return { kind: 'breakpoint', at, space: this.space }
  }

  /** A snapshot that tells for any address which symbol of the kernel or of a listed module it lies in. */
  async resolver(): Promise<Resolver> {
    const [symbols, modules] = await Promise.all([this.symbols(), this.modules()])
    return Resolver.create(this, symbols, modules)
  }

  /** What lies at an address, by a fresh {@link resolver}; undefined if neither the kernel nor a listed module. */
  async symbolAt(address: bigint): Promise<Where | undefined> {
    return (await this.resolver()).at(address)
  }

  /** Address of a per-CPU variable (a symbol, or its value as kallsyms has it) on one CPU. @throws ERR_CLOUDAPP_PROFILE */
  async perCpu(symbol: string | bigint, cpu: number): Promise<bigint> {
    const [address] = await this.perCpuAll(symbol, [cpu])
    return address as bigint
  }

  /** Addresses of a per-CPU variable on each of `cpus` (by default every CPU number below {@link cpus}). */
  async perCpuAll(symbol: string | bigint, cpus?: readonly number[]): Promise<bigint[]> {
    const value = typeof symbol === 'bigint' ? symbol : await this.symbol(symbol)
    return perCpuAddress(this, value, cpus)
  }

  /**
   * The processes (with `threads`, also their threads) in the order of the kernel's task list; pid 0, the idle task, is
   * no member of that list and left out, as `ps` does.
   * @throws ERR_CLOUDAPP_GUEST_CORRUPT with the address where the list breaks; ERR_CLOUDAPP_LIMIT past `limit`.
   *   {@link taskList} gives what was read up to there
   */
  async tasks(options: TaskOptions = {}): Promise<Task[]> {
    return (await listTasks(this, options, 'throw')).tasks
  }

  /** {@link tasks} that states how the list ended instead of throwing. */
  async taskList(options: TaskOptions = {}): Promise<TaskList> {
    return listTasks(this, options, 'report')
  }

  /** The modules of the kernel's module list, newest first, as in /proc/modules. @throws as {@link tasks} */
  async modules(options: ModuleOptions = {}): Promise<Module[]> {
    return (await listModules(this, options, 'throw')).modules
  }

  /** {@link modules} that states how the list ended instead of throwing. */
  async moduleList(options: ModuleOptions = {}): Promise<ModuleList> {
    return listModules(this, options, 'report')
  }
}
