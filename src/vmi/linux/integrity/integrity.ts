import { CloudAppError } from '../../../errors.js'
import { checkOptions } from '../../../options.js'
import type { VcpuReader, VcpuRegisters } from '../../guest.js'
import type { Linux } from '../linux.js'
import type { Module } from '../modules.js'
import { view } from '../read.js'
import { brokenCandidate, describeBroken } from './broken.js'
import { readCodeMap } from './code.js'
import { confirm } from './confirm.js'
import { interruptGates, syscallEntryPoint } from './cpu.js'
import type { Candidate, Hit } from './hit.js'
import { ftraceHooks, kprobeHooks, MAX_CANDIDATES } from './hooks.js'
import { Kernel } from './kernel.js'
import { hiddenModules, nameUnlisted, type UnlistedOwner } from './modules.js'
import { references } from './references.js'
import { syscallEntries, syscallTables } from './syscalls.js'
import { hiddenTasks } from './tasks.js'
import { Whereabouts } from './where.js'

/** The checks of {@link integrity}, by name. */
export const CHECKS = [
  'tasks',
  'modules',
  'syscall-entries',
  'syscall-tables',
  'ftrace',
  'kprobes',
  'interrupts',
  'syscall-entry-point',
  'references',
] as const

export type Check = (typeof CHECKS)[number]

export interface IntegrityOptions {
  /** The vCPUs, where the source has them and the right `vcpu.read` is held: for MSR LSTAR and the IDTR. */
  readonly vcpus?: VcpuReader
  readonly signal?: AbortSignal
}

export interface IntegrityReport {
  /** What should not be. Empty on a sound kernel. */
  readonly hits: readonly Hit[]
  /** Each check, and where it could not be done, why: a kernel without the part, or a guest whose data are broken. */
  readonly checks: readonly { readonly name: Check; readonly done: boolean; readonly reason?: string }[]
}

/**
 * Compares what the kernel says of itself with what it must be: hidden processes, threads and modules (each book of the
 * kernel against the others and against memory), and whether every way into the kernel leads to code that is accounted
 * for: system call functions and tables, ftrace callbacks, kprobes, interrupt gates, MSR LSTAR.
 *
 * The guest may run meanwhile: what one look finds, further looks confirm, so that a sound but busy guest gives no hits.
 * A structure that can not be read to its end is a hit as well (`broken-list`), and the check that reads it is not done:
 * a guest that breaks a list is not taken for a sound one.
 *
 * A look at a sound guest takes one pass; each thing found costs some more, a second or so in all.
 *
 * What code does is not judged, only whose it is: a listed module may divert what it likes.
 *
 * @throws ERR_CLOUDAPP_PROFILE if the kernel's symbols or types can not be had, ERR_CLOUDAPP_ABORTED, and what the
 *   handle throws when it ends (ERR_CLOUDAPP_REVOKED, ERR_CLOUDAPP_EXPIRED, ERR_CLOUDAPP_CLOSED)
 */
export async function integrity(linux: Linux, options: IntegrityOptions = {}): Promise<IntegrityReport> {
  checkOptions('integrity', options, ['vcpus', 'signal'])
  const inspection = await Inspection.open(linux, options)
  const hits = await inspection.run()
  return { hits, checks: inspection.checks() }
}

/**
 * The part of {@link integrity} that looks for what hides: processes, threads, modules and stray code.
 * @throws as {@link integrity}
 */
export async function crossView(
  linux: Linux,
  options: { readonly signal?: AbortSignal } = {},
): Promise<readonly Hit[]> {
  checkOptions('crossView', options, ['signal'])
  const inspection = await Inspection.open(linux, options)
  return inspection.run(['tasks', 'modules'])
}

class Inspection {
  readonly #kernel: Kernel
  readonly #registers: readonly VcpuRegisters[]
  readonly #options: { readonly signal?: AbortSignal }
  readonly #reasons = new Map<Check, string>()
  readonly #jiffies: bigint
  #owners: readonly UnlistedOwner[] = []
  #where?: Whereabouts

  private constructor(kernel: Kernel, registers: readonly VcpuRegisters[], options: { signal?: AbortSignal }) {
    this.#kernel = kernel
    this.#registers = registers
    this.#options = options
    this.#jiffies = kernel.symbol('jiffies')
  }

  static async open(linux: Linux, { vcpus, signal }: IntegrityOptions): Promise<Inspection> {
    const options = signal === undefined ? {} : { signal }
    const kernel = await Kernel.open(linux)
    const registers = (await vcpus?.registers(options)) ?? []
    const inspection = new Inspection(kernel, registers, options)
    const unread = registers.find((vcpu) => vcpu.lstar === undefined)
    if (vcpus === undefined)
      inspection.#skip('syscall-entry-point', 'the right vcpu.read is not held, or the source has no vCPUs')
    else if (unread !== undefined) {
      inspection.#skip(
        'syscall-entry-point',
        unread.missing?.lstar ?? `the source does not give MSR LSTAR of vCPU ${unread.index}`,
      )
    }
    return inspection
  }

  checks(): IntegrityReport['checks'] {
    return CHECKS.map((name) => {
      const reason = this.#reasons.get(name)
      return reason === undefined ? { name, done: true } : { name, done: false, reason }
    })
  }

  async run(only: readonly Check[] = CHECKS): Promise<readonly Hit[]> {
    const pace = { clock: () => this.#clock(), ...this.#options }
    const hits = await confirm(() => this.#look(only), pace)
    for (const { kind, title, evidence } of hits) {
      const { check } = evidence.data
      if (kind === 'broken-list' && !this.#reasons.has(check as Check)) this.#skip(check as Check, title)
    }
    const code = hits.some((hit) => hit.kind === 'hidden-module' || hit.kind === 'unlisted-code')
    if (code && only.includes('references')) {
      // Only where there is code that should not be: all of the image is read for it.
      const known = new Set(hits.flatMap(({ evidence: { data } }) => [data.function, data.at]))
      const more = await confirm(() => this.#check('references', () => this.#references()), pace)
      hits.push(...more.filter(({ evidence: { data } }) => !known.has(data.at) && !known.has(data.function ?? '')))
    }
    return unique(hits)
  }

  async #look(only: readonly Check[]): Promise<Candidate[]> {
    const kernel = this.#kernel
    const options = this.#options
    kernel.broken.check = 'modules'
    let modules: readonly Module[] = []
    const code = await readCodeMap(
      kernel,
      async () => {
        const list = await kernel.linux.moduleList()
        const what = 'the module list'
        kernel.broken.noteEnd({ what }, kernel.trySymbol('modules') ?? 0n, { ...list, rows: list.modules.length })
        modules = list.modules
        return modules
      },
      options,
    )
    this.#owners = await nameUnlisted(kernel, code.unlisted, options)
    const where = new Whereabouts(kernel, code, this.#owners)
    this.#where = where
    const candidates: Candidate[] = []
    const run = async (name: Check, check: () => Promise<Candidate[]> | Candidate[]) => {
      if (only.includes(name)) candidates.push(...(await this.#check(name, check)))
    }
    let probed: ReadonlySet<bigint> = new Set()
    await run('tasks', () => hiddenTasks(kernel, options.signal))
    await run('modules', () => hiddenModules(kernel, modules, this.#owners, options))
    await run('ftrace', () => ftraceHooks(kernel, where, options))
    await run('kprobes', async () => {
      const probes = await kprobeHooks(kernel, where, options)
      probed = probes.probed
      return probes.candidates
    })
    await run('syscall-entries', () => syscallEntries(kernel, where, probed, options))
    await run('syscall-tables', () => syscallTables(kernel, where, options))
    await run('interrupts', () => interruptGates(kernel, where, this.#registers, options))
    await run('syscall-entry-point', () => syscallEntryPoint(kernel, where, this.#registers))
    for (const broken of kernel.broken.take()) {
      candidates.push(brokenCandidate(broken))
      // What hides is found by the first look, or not at all: the further ones only confirm.
      if (!broken.churns) this.#skip(broken.check as Check, describeBroken(broken))
    }
    return candidates
  }

  #references(): Promise<Candidate[]> {
    return references(this.#kernel, this.#where as Whereabouts, this.#owners, this.#options)
  }

  async #clock(): Promise<{ now: bigint; still: boolean }> {
    const { memory, space } = this.#kernel
    const [read] = await memory.read([{ space, at: this.#jiffies, length: 8 }], this.#options)
    if (read === undefined) throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', 'the source answered no result')
    return { now: view(read.bytes).getBigUint64(0, true), still: read.consistent }
  }

  /** A check a kernel has no parts for, or whose data the guest broke, says so; the others go on. */
  async #check(name: Check, check: () => Promise<Candidate[]> | Candidate[]): Promise<Candidate[]> {
    try {
      this.#kernel.broken.check = name
      const found = await check()
      if (found.length <= MAX_CANDIDATES) return found
      this.#skip(name, `it finds ${found.length} things, of which ${MAX_CANDIDATES} are told`)
      return found.slice(0, MAX_CANDIDATES)
    } catch (error) {
      if (!CloudAppError.is(error, 'ERR_CLOUDAPP_PROFILE') && !CloudAppError.is(error, 'ERR_CLOUDAPP_GUEST_CORRUPT'))
        throw error
      this.#skip(name, error.message)
      return []
    }
  }

  #skip(name: Check, reason: string): void {
    this.#reasons.set(name, reason)
  }
}

function unique(hits: readonly Hit[]): Hit[] {
  return [...new Map(hits.map((hit) => [hit.id, hit])).values()]
}
