import type { VcpuRegisters } from '../guest.js'
import { notesOf } from './elf-header.js'
import { beyond, malformed, SNAPSHOT_LIMITS } from './snapshot.js'

type Name = Exclude<keyof VcpuRegisters, 'index' | 'missing'>

const ALL: readonly Name[] = [
  ...(['rip', 'rsp', 'rflags', 'cr0', 'cr3', 'cr4', 'efer', 'gsBase', 'kernelGsBase'] as const),
  ...(['idtBase', 'idtLimit', 'gdtBase', 'lstar'] as const),
]

/** Offsets of 64-bit words in a descriptor, by register. */
type Places = Partial<Record<Exclude<Name, 'idtLimit'>, number>>

const NT_PRSTATUS = 1
/** struct elf_prstatus (Linux: include/uapi/linux/elfcore.h) with x86-64's user_regs_struct at 112. */
const PRSTATUS_SIZE = 336
const PRSTATUS: Places = { rip: 240, rflags: 256, rsp: 264, gsBase: 288 }

/**
 * QEMUCPUState (QEMU: target/i386/arch_dump.c), version 1: u32 version, u32 size, 16 general registers, rip, rflags, ten
 * segments of 24 bytes { u32 selector, limit, flags, pad; u64 base }, cr0 to cr4, and since QEMU 2.11 kernel_gs_base.
 */
const QEMU_SIZE = 432
const QEMU: Places = { rsp: 56, rip: 136, rflags: 144, gsBase: 264, gdtBase: 360, idtBase: 384 }
const QEMU_CONTROL: Places = { cr0: 392, cr3: 416, cr4: 424 }
const QEMU_IDT_LIMIT = 372
const QEMU_KERNEL_GS = 432

/** vcpu_guest_context (Xen: include/public/arch-x86/xen.h and xen-x86_64.h). */
const XEN_SIZE = 5168
const XEN: Places = { rip: 648, rflags: 664, rsp: 672, cr0: 4984, cr3: 5008, cr4: 5016 }
const XEN_CS = 656
const XEN_GS_KERNEL = 5152
const XEN_GS_USER = 5160

/**
 * The registers of each vCPU from the notes of a core file: QEMU's own note where there is one, else what a process's
 * status has. What is not there is named in `missing`.
 */
export function registersOfNotes(table: Buffer): VcpuRegisters[] {
  const status: Buffer[] = []
  const qemu: Buffer[] = []
  for (const { name, type, desc } of notesOf(table)) {
    if (name === 'CORE' && type === NT_PRSTATUS && desc.length >= PRSTATUS_SIZE) status.push(desc)
    else if (name === 'QEMU' && type === 0 && desc.length >= QEMU_SIZE && desc.readUInt32LE(0) === 1) qemu.push(desc)
    const count = Math.max(status.length, qemu.length)
    if (count > SNAPSHOT_LIMITS.vcpus) throw beyond('vCPUs in the notes', count, SNAPSHOT_LIMITS.vcpus)
  }
  if (qemu.length > 0) return qemu.map(fromQemu)
  return status.map((desc, index) => registers(index, desc, PRSTATUS, {}, 'the core file has no note of QEMU'))
}

function fromQemu(desc: Buffer, index: number): VcpuRegisters {
  const places = {
    ...QEMU,
    ...QEMU_CONTROL,
    ...(desc.length >= QEMU_KERNEL_GS + 8 ? { kernelGsBase: QEMU_KERNEL_GS } : {}),
  }
  return registers(index, desc, places, { idtLimit: desc.readUInt32LE(QEMU_IDT_LIMIT) }, "QEMU's note does not have it")
}

/** The registers in Xen's section `.xen_prstatus`. */
export function registersOfXen(table: Buffer): VcpuRegisters[] {
  if (table.length % XEN_SIZE !== 0) throw malformed('.xen_prstatus is no table of vcpu_guest_context')
  const count = table.length / XEN_SIZE
  if (count > SNAPSHOT_LIMITS.vcpus) throw beyond('vCPUs in .xen_prstatus', count, SNAPSHOT_LIMITS.vcpus)
  return Array.from({ length: count }, (_, index) => {
    const desc = table.subarray(index * XEN_SIZE, (index + 1) * XEN_SIZE)
    // Xen has the base that GS uses in the field of the privilege level the vCPU ran at (xen/arch/x86/domctl.c).
    const kernel = ((desc[XEN_CS] ?? 0) & 3) === 0
    const gsBase = kernel ? XEN_GS_KERNEL : XEN_GS_USER
    const kernelGsBase = kernel ? XEN_GS_USER : XEN_GS_KERNEL
    return registers(index, desc, { ...XEN, gsBase, kernelGsBase }, {}, "Xen's dump does not have it")
  })
}

function registers(
  index: number,
  desc: Buffer,
  places: Places,
  more: Pick<VcpuRegisters, 'idtLimit'>,
  why: string,
): VcpuRegisters {
  const words = Object.entries(places).map(([name, at]) => [name, desc.readBigUInt64LE(at)])
  const known: VcpuRegisters = { index, ...Object.fromEntries(words), ...more }
  const missing = ALL.filter((name) => known[name] === undefined).map((name) => [name, why])
  return missing.length === 0 ? known : { ...known, missing: Object.fromEntries(missing) }
}
