import type { StructRef } from '../machine/structs.js'
import type { Areas } from './areas.js'
import { branch, TRACE_NOP } from './image.js'
import type { Kernel } from './kernel.js'

/** KPROBE_TABLE_SIZE: kernel/kprobes.c. */
const KPROBE_BUCKETS = 64
const HASH_BITS = 4
/** FTRACE_OPS_FL_ENABLED | FTRACE_OPS_FL_SAVE_REGS: include/linux/ftrace.h. */
const OPS_FLAGS = 0x5
const INT3 = 0xcc

/** The kernel's own hooks: function tracing, probes, BPF programs. */
export class Hooks {
  readonly #kernel: Kernel
  readonly #areas: Areas
  readonly #opsList: bigint
  readonly #opsEnd: StructRef
  readonly #trampolines: bigint
  readonly #probes: bigint
  readonly #slots: StructRef
  readonly #programs: bigint
  readonly #packs: bigint | undefined

  constructor(kernel: Kernel, areas: Areas) {
    this.#kernel = kernel
    this.#areas = areas
    const { image, lists } = kernel
    this.#opsEnd = image.struct('ftrace_list_end', 'ftrace_ops')
    this.#opsEnd.setAll({ func: image.symbol('ftrace_stub'), func_hash: this.#opsEnd.at('local_hash') })
    this.#opsList = image.pointer('ftrace_ops_list', this.#opsEnd.address)
    this.#trampolines = image.variable('ftrace_ops_trampoline_list', 16, 'd', 8)
    lists.init(this.#trampolines)
    this.#probes = image.variable('kprobe_table', KPROBE_BUCKETS * 8, 'b')
    this.#slots = image.struct('kprobe_insn_slots', 'kprobe_insn_cache')
    const optimised = image.struct('kprobe_optinsn_slots', 'kprobe_insn_cache')
    for (const cache of [this.#slots, optimised]) {
      lists.init(cache.at('pages'))
      cache.setAll({ insn_size: 15 })
    }
    this.#programs = image.variable('bpf_kallsyms', 16, 'd', 8)
    lists.init(this.#programs)
    this.#packs = kernel.types.has('bpf_prog_pack') ? image.variable('pack_list', 16, 'd', 8) : undefined
    if (this.#packs !== undefined) lists.init(this.#packs)
  }

  /**
   * Traces functions: their NOP becomes a call of a trampoline, and an ftrace_ops says who is called.
   *
   * @returns the ftrace_ops
   */
  trace(functions: readonly bigint[], target: bigint, at = this.#kernel.create('ftrace_ops')): StructRef {
    const { machine, lists } = this.#kernel
    const trampoline = this.#areas.map(4096, { write: false, execute: true })
    machine.setBytes(trampoline, new Uint8Array(4096).fill(INT3))
    machine.setBytes(trampoline + 16n, branch(0xe8, trampoline + 16n, target))
    machine.setU8(trampoline + 21n, 0xc3)
    const hash = this.#kernel.create('ftrace_hash')
    const buckets = machine.alloc(8 << HASH_BITS)
    hash.setAll({ size_bits: HASH_BITS, buckets, count: functions.length })
    for (const [i, address] of functions.entries()) {
      const site = this.site(address)
      const bytes = machine.bytes(site, TRACE_NOP.length)
      if (TRACE_NOP.some((byte, k) => byte !== bytes[k])) {
        throw new RangeError(`0x${address.toString(16)} is no function that can be traced, or is traced already`)
      }
      machine.setBytes(site, branch(0xe8, site, trampoline))
      const entry = this.#kernel.create('ftrace_func_entry')
      entry.set('ip', site)
      lists.addHash(buckets + BigInt((i % (1 << HASH_BITS)) * 8), entry.at('hlist'))
    }
    at.setAll({
      func: target,
      saved_func: target,
      flags: OPS_FLAGS,
      next: machine.u64(this.#opsList),
      func_hash: at.at('local_hash'),
      'local_hash.filter_hash': hash.address,
      trampoline,
      trampoline_size: 64,
    })
    machine.setU64(this.#opsList, at.address)
    lists.addTail(this.#trampolines, at.at('list'))
    return at
  }

  /** Puts a breakpoint at an address, with the kprobe that owns it. */
  probe(address: bigint, handler: bigint): StructRef {
    const { machine, lists } = this.#kernel
    const probe = this.#kernel.create('kprobe')
    lists.init(probe.at('list'))
    probe.setAll({ addr: address, opcode: machine.bytes(address, 1)[0] as number, pre_handler: handler })
    machine.setU8(address, INT3)
    // hash_ptr(addr, KPROBE_HASH_BITS): include/linux/hash.h.
    const bucket = Number(BigInt.asUintN(64, address * 0x61c8_8646_80b5_83ebn) >> 58n)
    lists.addHash(this.#probes + BigInt(bucket * 8), probe.at('hlist'))
    const slots = this.#areas.map(4096, { write: false, execute: true })
    machine.setBytes(slots, new Uint8Array(4096).fill(INT3))
    machine.setBytes(slots, Uint8Array.from([0x90, 0x90, 0xc3]))
    const page = this.#kernel.create('kprobe_insn_page', 256)
    page.setAll({ insns: slots, cache: this.#slots.address, nused: 1 })
    lists.addTail(this.#slots.at('pages'), page.at('list'))
    return probe
  }

  /** Loads a BPF program; where its code begins. */
  program(name: string): bigint {
    const { machine, lists } = this.#kernel
    const size = 16 * 4096
    const packed = this.#packs !== undefined
    const caller = packed ? 'bpf_prog_pack_alloc' : 'bpf_jit_alloc_exec'
    const area = this.#areas.map(packed ? size : 4096, { write: false, execute: true }, caller)
    machine.setBytes(area, new Uint8Array(packed ? size : 4096).fill(INT3))
    const start = area + 64n
    machine.setBytes(start, Uint8Array.from([...TRACE_NOP, 0x31, 0xc0, 0xc3]))
    if (this.#packs !== undefined) {
      const pack = this.#kernel.create('bpf_prog_pack', 64)
      pack.setAll({ ptr: area })
      lists.addTail(this.#packs, pack.at('list'))
    }
    const symbol = this.#kernel.create('bpf_ksym')
    symbol.setAll({ start, end: start + 64n, name, prog: 1 })
    lists.addTail(this.#programs, symbol.at('lnode'))
    return start
  }

  /** Where the tracer's call of a function stands: behind ENDBR64. */
  site(address: bigint): bigint {
    return this.#kernel.image.entry.endbr ? address + 4n : address
  }
}
