import { CloudAppError } from '../../errors.js'
import type { VcpuRegisters } from '../guest.js'

/** Most vCPUs taken from a peer. */
const MAX_VCPUS = 1024

type Writable<T> = { -readonly [K in keyof T]: T[K] }

/** Names in `info registers` (QEMU target/i386/cpu-dump.c) of plain 64-bit registers. */
const PLAIN = { rip: 'RIP', rsp: 'RSP', rflags: 'RFL', cr0: 'CR0', cr3: 'CR3', cr4: 'CR4', efer: 'EFER' } as const

/**
 * Reads the text of `info registers -a`, for a vCPU in 64-bit mode. What is not in it is named in `missing`.
 *
 * @throws CloudAppError ERR_CLOUDAPP_PROTOCOL if it shows no vCPU, or too many.
 */
export function parseRegisters(text: string): VcpuRegisters[] {
  const parts = text.split(/^CPU#(\d+)\s*$/m).slice(1)
  if (parts.length < 2 || parts.length > 2 * MAX_VCPUS) {
    throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `QEMU's 'info registers -a' shows ${parts.length / 2} vCPUs`)
  }
  const vcpus: VcpuRegisters[] = []
  for (let i = 0; i < parts.length; i += 2) vcpus.push(one(Number(parts[i]), parts[i + 1] ?? ''))
  return vcpus
}

function one(index: number, text: string): VcpuRegisters {
  const registers: Writable<VcpuRegisters> = { index }
  const missing: Record<string, string> = {}
  const take = (name: keyof typeof PLAIN | 'gsBase', pattern: RegExp): void => {
    const value = pattern.exec(text)?.[1]
    if (value === undefined) missing[name] = "QEMU's 'info registers' does not show it"
    else registers[name] = BigInt(`0x${value}`)
  }
  for (const [name, shown] of Object.entries(PLAIN)) {
    take(name as keyof typeof PLAIN, new RegExp(`\\b${shown}\\s*=\\s*([0-9a-f]{1,16})\\b`))
  }
  take('gsBase', /^GS =[0-9a-f]{4} ([0-9a-f]{16}) /m)
  const gdt = /^GDT=\s+([0-9a-f]{1,16}) [0-9a-f]{8}/m.exec(text)
  if (gdt?.[1]) registers.gdtBase = BigInt(`0x${gdt[1]}`)
  else missing.gdtBase = "QEMU's 'info registers' does not show it"
  const idt = /^IDT=\s+([0-9a-f]{1,16}) ([0-9a-f]{8})/m.exec(text)
  if (idt?.[1] && idt[2]) {
    registers.idtBase = BigInt(`0x${idt[1]}`)
    registers.idtLimit = Number.parseInt(idt[2], 16)
  } else {
    missing.idtBase = missing.idtLimit = "QEMU's 'info registers' does not show it"
  }
  if (Object.keys(missing).length > 0) registers.missing = missing
  return registers
}

/** What only QEMU's saved device state shows. */
export interface SyscallMsrs {
  readonly lstar: bigint
  readonly kernelGsBase: bigint
}

const MAGIC = 0x51_45_56_4d
/** STAR as Linux sets it: __USER32_CS << 48 | __KERNEL_CS << 32 (arch/x86/kernel/cpu/common.c, syscall_init()). */
const LINUX_STAR = 0x0023_0010_0000_0000n

/** IA32_EFER.SCE: SYSCALL is on. */
const EFER_SCE = 1n

/**
 * Finds MSR LSTAR and KERNEL_GS_BASE of each vCPU in a device state that `xen-save-devices-state` wrote. The vCPU's section has
 * efer, star, lstar, cstar, fmask, kernelgsbase one behind the other as big-endian 64-bit words (QEMU target/i386/machine.c,
 * vmstate_x86_cpu); the section's layout before them depends on QEMU's version, so they are found by their shape: EFER as
 * `info registers` shows it, then STAR as Linux sets it. Sections of vCPUs come in order of their index.
 *
 * @returns by vCPU index, for the vCPUs that use SYSCALL; or the reason why they can not be told apart.
 */
export function findSyscallMsrs(state: Buffer, vcpus: readonly VcpuRegisters[]): Map<number, SyscallMsrs> | string {
  if (state.length < 8 || state.readUInt32BE(0) !== MAGIC) return 'QEMU wrote a device state of another format'
  const using = vcpus.filter((vcpu) => vcpu.efer !== undefined && (vcpu.efer & EFER_SCE) !== 0n)
  const star = Buffer.alloc(8)
  star.writeBigUInt64BE(LINUX_STAR)
  const found: { efer: bigint; msrs: SyscallMsrs }[] = []
  for (let at = state.indexOf(star); at >= 0; at = state.indexOf(star, at + 1)) {
    if (at < 8 || at + 40 > state.length) continue
    const efer = state.readBigUInt64BE(at - 8)
    if (!using.some((vcpu) => vcpu.efer === efer)) continue
    const msrs = { lstar: state.readBigUInt64BE(at + 8), kernelGsBase: state.readBigUInt64BE(at + 32) }
    found.push({ efer, msrs })
  }
  if (found.length !== using.length || found.some(({ efer }, i) => using[i]?.efer !== efer)) {
    return `QEMU's device state shows STAR as Linux sets it ${found.length} times for ${using.length} vCPUs`
  }
  return new Map(found.map(({ msrs }, i) => [using[i]?.index ?? i, msrs]))
}
