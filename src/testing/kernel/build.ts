import { createHash } from 'node:crypto'
import { Machine, place, SECTION } from '../machine/machine.js'
import { Random } from '../random.js'
import { Areas } from './areas.js'
import { encodeBtf } from './btf.js'
import {
  type Facts,
  placeBtf,
  placeKallsyms,
  placeNames,
  placeNotes,
  placeVmcoreinfo,
  vmcoreinfoText,
} from './facts.js'
import { Hooks } from './hooks.js'
import { Image } from './image.js'
import { kallsymsForm } from './kallsyms.js'
import { Kernel } from './kernel.js'
import { MODULE_STATES, Modules } from './modules.js'
import { type KernelVersion, kernelShapes } from './shapes.js'
import { Tasks } from './tasks.js'
import { fillText } from './text.js'
import { Types } from './types.js'

/** What a synthetic kernel is made from; every choice is made by now. */
export interface BuildOptions extends KernelVersion {
  readonly seed: number
  readonly memory: number
  readonly levels: 4 | 5
  readonly kaslr: boolean
  /** Page size of the direct map, in bytes. */
  readonly directPage: number
  readonly cpus: number
  readonly functions: number
  readonly btf: boolean
  readonly vmcoreinfo: boolean
  readonly named: boolean
}

/** A kernel at work in its RAM. */
export interface Built {
  readonly machine: Machine
  readonly kernel: Kernel
  readonly tasks: Tasks
  readonly modules: Modules
  readonly hooks: Hooks
  readonly areas: Areas
  /** Where the parts lie that an attacker, or a test, may want to damage. */
  readonly parts: {
    readonly btf: bigint | undefined
    readonly vmcoreinfo: readonly bigint[]
    readonly kallsyms: ReadonlyMap<string, bigint>
  }
}

/** CPU_ENTRY_AREA_RO_IDT: arch/x86/include/asm/cpu_entry_area.h. */
export const READ_ONLY_IDT = 0xffff_fe00_0000_0000n

/** Boots, so to speak, the kernel. */
export function buildKernel(options: BuildOptions): Built {
  const random = new Random(options.seed)
  const placement = place(random.fork('kaslr'), options.levels, options.memory, options.kaslr)
  const root = placement.textPhysical + SECTION.text + SECTION.rodata
  const machine = new Machine(options.memory, placement, root, random.fork('machine'))
  const types = new Types(kernelShapes(options.version), random.fork('types'))
  const data = placement.text + BigInt(SECTION.text + SECTION.rodata)
  // Since 6.15 the per-CPU template has addresses of its own, behind the other data.
  const percpuBase = options.version >= 615 ? data + BigInt(SECTION.data - (SECTION.data >> 2)) : 0n
  const image = new Image(machine, types, random.fork('image'), { endbr: options.version >= 518 }, percpuBase)
  const kernel = new Kernel(machine, types, image, random.fork('kernel'), options.version)

  image.label('__start_rodata', 'D', image.cursor('rodata'))
  image.label('_sdata', 'D', image.cursor('data'))
  const table = image.take('data', 4096, 4096)
  image.label('swapper_pg_dir', 'D', table)
  image.label('init_top_pgt', 'D', table)
  mapKernel(machine, options.directPage)
  fillText(image, options.functions)
  machine.tables.map(READ_ONLY_IDT, machine.physical(image.symbol('idt_table')), 4096, 4096, {
    write: false,
    execute: false,
  })

  image.label('__per_cpu_start', percpuBase === 0n ? 'A' : 'D', percpuBase, percpuBase === 0n)
  placeVariables(kernel, options)
  const tasks = new Tasks(kernel, options.cpus)
  const areas = new Areas(kernel)
  const modules = new Modules(kernel, areas)
  const hooks = new Hooks(kernel, areas)
  const facts: Omit<Facts, 'buildId'> = {
    release: options.release,
    version: options.version,
    kallsyms: kallsymsForm(options.version),
    named: options.named,
  }
  return { machine, kernel, tasks, modules, hooks, areas, parts: describe(kernel, options, facts) }
}

function mapKernel(machine: Machine, directPage: number): void {
  const { tables, placement } = machine
  const { text, textPhysical, pageOffset, vmallocBase, vmemmapBase } = placement
  const large = 0x20_0000
  const sections = [
    { size: SECTION.text, write: false, execute: true },
    { size: SECTION.rodata, write: false, execute: false },
    { size: SECTION.data, write: true, execute: false },
  ]
  let done = 0
  for (const { size, ...rights } of sections) {
    tables.map(text + BigInt(done), textPhysical + done, size, large, rights)
    done += size
  }
  tables.map(pageOffset, 0, machine.ram.byteLength, directPage, { write: true, execute: false })
  // Processes share what their roots point to: make every kernel entry of the root now.
  for (const base of [vmallocBase, vmemmapBase]) tables.entryAddress(base, 3, tables.root, true)
}

/** Variables that say where things are, and state without structure. */
function placeVariables(kernel: Kernel, options: BuildOptions): void {
  const { image, machine, types } = kernel
  const { placement } = machine
  image.pointer('page_offset_base', placement.pageOffset)
  image.pointer('vmalloc_base', placement.vmallocBase)
  image.pointer('vmemmap_base', placement.vmemmapBase)
  image.pointer('phys_base', BigInt(placement.textPhysical) - (placement.text - 0xffff_ffff_8000_0000n))
  for (const [name, value] of [
    ['__pgtable_l5_enabled', options.levels === 5 ? 1 : 0],
    ['nr_cpu_ids', options.cpus],
    ['panic_on_oops', 0],
  ] as const) {
    machine.setU32(image.variable(name, 4, 'D', 4), value)
  }
  for (const name of ['__cpu_possible_mask', '__cpu_online_mask', '__cpu_present_mask']) {
    machine.setU64(image.variable(name, 1024, 'D'), (1n << BigInt(options.cpus)) - 1n)
  }
  const ticks = image.pointer('jiffies', 0xffff_fff0_0000n + BigInt(options.seed & 0xffff))
  image.label('jiffies_64', 'D', ticks)
  const clock = image.variable('tk_core', 8 + types.sizeof('timekeeper'), 'd')
  kernel.at('timekeeper', clock + 8n).setAll({ xtime_sec: 1_700_000_000n, ktime_sec: 1000n, raw_sec: 1000n })
  for (const name of ['vmcoreinfo_data', 'vmcoreinfo_size', 'vmcoreinfo_note']) image.pointer(name, 0n)
  image.variable('node_online_map', 128, 'D')
}

/** Places what the kernel says about itself; by now every symbol has its address. */
function describe(kernel: Kernel, options: BuildOptions, facts: Omit<Facts, 'buildId'>): Built['parts'] {
  const { image, machine, types } = kernel
  const btf = encodeBtf(types, {
    enums: {
      module_state: MODULE_STATES,
      pid_type: { PIDTYPE_PID: 0, PIDTYPE_TGID: 1, PIDTYPE_PGID: 2, PIDTYPE_SID: 3 },
    },
    functions: image.symbols.filter(({ name }) => name.startsWith('__x64_sys_')).map(({ name }) => name),
    percpu: [
      {
        name: 'runqueues',
        struct: 'struct rq',
        offset: Number(image.symbol('runqueues') - image.percpuBase),
        size: types.sizeof('rq'),
      },
    ],
  })
  const hash = createHash('sha256')
    .update(JSON.stringify({ ...options }))
    .update(btf)
  hash.update(image.symbols.map(({ name, address }) => `${name} ${address - machine.placement.text}`).join())
  const all: Facts = { ...facts, buildId: hash.digest().subarray(0, 20) }
  placeNames(image, all)
  placeNotes(image, all)
  const start = options.btf ? placeBtf(image, btf) : undefined
  const { text } = machine.placement
  const dataEnd = text + BigInt(machine.placement.imageSize)
  image.label('__end_rodata', 'D', text + BigInt(SECTION.text + SECTION.rodata))
  image.label('_edata', 'D', image.cursor('data'))
  image.label('__bss_start', 'B', image.cursor('data'))
  image.label('_sinittext', 'T', dataEnd - 0x2_0000n)
  image.label('_einittext', 'T', dataEnd - 0x1_0000n)
  image.label('__bss_stop', 'B', dataEnd)
  image.label('_end', 'B', dataEnd)
  const kallsyms = placeKallsyms(image, all.kallsyms)
  const vmcoreinfo = options.vmcoreinfo
    ? placeVmcoreinfo(image, machine, vmcoreinfoText(image, types, all, kallsyms))
    : []
  return { btf: start, vmcoreinfo, kallsyms }
}
