import type { VcpuRegisters } from '../vmi/guest.js'
import { type Built, READ_ONLY_IDT } from './kernel/build.js'
import { branch } from './kernel/image.js'
import { syscallNames } from './kernel/syscalls.js'
import { setGate } from './kernel/text.js'

/** How a system call is diverted. */
export interface PatchOptions {
  /**
   * `jump` (the default) and `call` overwrite the first instruction, `mov` with MOV RAX, imm64; JMP RAX; `table` changes
   * sys_call_table; `ftrace` registers a tracer; `kprobe` puts a probe there, `int3` a breakpoint that no probe owns;
   * `dispatcher` changes the call in x64_sys_call.
   */
  readonly by?: 'jump' | 'call' | 'mov' | 'table' | 'ftrace' | 'kprobe' | 'int3' | 'dispatcher'
}

/** What an intruder, or a busy system, does to the kernel. */
export class Attacks {
  readonly #built: Built
  readonly #entries = new Map<number, bigint>()

  constructor(built: Built) {
    this.#built = built
  }

  patchSyscall(name: string, target: bigint, by: NonNullable<PatchOptions['by']>): bigint {
    const { machine, kernel, hooks } = this.#built
    const entry = kernel.image.find(`__x64_sys_${name}`)
    const number = syscallNames().indexOf(name)
    if (entry === undefined || number < 0) throw new RangeError(`the synthetic kernel has no system call ${name}`)
    switch (by) {
      case 'jump':
      case 'call':
        machine.setBytes(entry, branch(by === 'jump' ? 0xe9 : 0xe8, entry, target))
        return entry
      case 'mov':
        machine.setBytes(entry, Uint8Array.from([0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0]))
        machine.setU64(entry + 2n, target)
        return entry
      case 'table': {
        const slot = kernel.image.symbol('sys_call_table') + BigInt(number * 8)
        machine.setU64(slot, target)
        return slot
      }
      case 'ftrace':
        hooks.trace([entry], target)
        return hooks.site(entry)
      case 'kprobe':
        hooks.probe(entry, target)
        return entry
      case 'int3':
        machine.setU8(entry, 0xcc)
        return entry
      case 'dispatcher': {
        const at = kernel.image.symbol('x64_sys_call') + 16n + BigInt(number * 5)
        machine.setBytes(at, branch(0xe8, at, target))
        return at
      }
    }
  }

  patchInterrupt(vector: number, target: bigint): void {
    if (!Number.isInteger(vector) || vector < 0 || vector > 255) throw new RangeError(`${vector} is no vector`)
    const { image } = this.#built.kernel
    setGate(image, image.symbol('idt_table') + BigInt(vector * 16), target, 0)
  }

  patchEntry(target: bigint, cpu?: number): void {
    const cpus = this.#built.tasks.queues.areas.map((_, i) => i)
    if (cpu !== undefined && !cpus.includes(cpu)) throw new RangeError(`the guest has no CPU ${cpu}`)
    for (const each of cpu === undefined ? cpus : [cpu]) this.#entries.set(each, target)
  }

  injectCode(size: number): bigint {
    if (!Number.isInteger(size) || size < 1 || size > 1 << 24)
      throw new RangeError(`size ${size} is not from 1 to 16 MiB`)
    const { areas, machine } = this.#built
    const at = areas.map(size, { write: true, execute: true })
    areas.forget(at)
    machine.setBytes(at, new Uint8Array(size).fill(0x90))
    machine.setU8(at + BigInt(size - 1), 0xc3)
    return at
  }

  /** The hooks a busy system has of its own. */
  work(): void {
    const { hooks, kernel } = this.#built
    const { image } = kernel
    const tracer = image.symbol('function_trace_call')
    hooks.trace([image.symbol('vfs_read'), image.symbol('__x64_sys_openat')], tracer)
    hooks.probe(image.symbol('do_exit') + 12n, image.symbol('aggr_pre_handler'))
    for (const name of ['bpf_prog_6deef7357e7b4530_sd_fw_egress', 'bpf_prog_ee0e253c78993a24_sd_devices'])
      hooks.program(name)
  }

  registers(index: number): VcpuRegisters {
    const { machine, kernel, tasks } = this.#built
    const area = tasks.queues.areas[index] as bigint
    return {
      index,
      rip: kernel.image.symbol('schedule') + 16n,
      rflags: 0x246n,
      cr0: 0x8005_0033n,
      cr3: BigInt(machine.tables.root),
      // CR4.LA57 is bit 12: Intel SDM vol. 3A, 2.5.
      cr4: machine.placement.levels === 5 ? 0x1020f0n | 0x1000n : 0x1020f0n,
      efer: 0xd01n,
      gsBase: area,
      kernelGsBase: 0n,
      idtBase: READ_ONLY_IDT,
      idtLimit: 0xfff,
      lstar: this.#entries.get(index) ?? kernel.image.symbol('entry_SYSCALL_64'),
    }
  }
}
