import type { VcpuRegisters } from '../../guest.js'
import { view } from '../read.js'
import type { Candidate } from './hit.js'
import type { Kernel } from './kernel.js'
import type { Whereabouts } from './where.js'

const GATES = 256
const GATE_BYTES = 16
const LOOKS = 2

/** Every present gate of the interrupt descriptor table, as the kernel has it and as each vCPU uses it. */
export async function interruptGates(
  kernel: Kernel,
  where: Whereabouts,
  registers: readonly VcpuRegisters[],
  options: { readonly signal?: AbortSignal },
): Promise<Candidate[]> {
  const tables = new Map<bigint, string>()
  const own = kernel.trySymbol('idt_table')
  if (own !== undefined) tables.set(own, 'idt_table')
  for (const { index, idtBase } of registers) {
    if (idtBase !== undefined && !tables.has(idtBase)) tables.set(idtBase, `the IDT of vCPU ${index}`)
  }
  const candidates = new Map<string, Candidate>()
  for (const [base, name] of tables) {
    const [read] = await kernel.memory.read([{ space: kernel.space, at: base, length: GATES * GATE_BYTES }], options)
    if (read === undefined || read.faults.length > 0) {
      kernel.broken.note({ what: name }, base, 'can not be read')
      continue
    }
    const data = view(read.bytes)
    for (let vector = 0; vector < GATES; vector++) {
      const gate = gateAt(data, vector * GATE_BYTES)
      if (!gate.present || where.isKernel(gate.target)) continue
      // Reserved vectors still have the gates of early boot; that code is long freed and mapped no more.
      if (kernel.symbolAt(gate.target)?.name === 'early_idt_handler_array') continue
      const identity = `gate:${vector}:${gate.target}`
      // The same table is seen through the kernel's address and the read-only one the CPUs use.
      if (candidates.has(identity)) continue
      candidates.set(identity, {
        hit: {
          id: `diverted-interrupt:${vector}`,
          kind: 'diverted-interrupt',
          title: `Interrupt gate ${vector} of ${name} leads to ${where.name(gate.target)}`,
          severity: 'critical',
          evidence: where.evidence(gate.target, { vector, table: base }),
        },
        identity,
        looks: LOOKS,
      })
    }
  }
  return [...candidates.values()]
}

/** 64-bit gate descriptor: Intel SDM vol. 3A, 6.14.1. */
function gateAt(data: DataView, at: number): { target: bigint; present: boolean } {
  const low = BigInt(data.getUint16(at, true))
  const middle = BigInt(data.getUint16(at + 6, true))
  const high = BigInt(data.getUint32(at + 8, true))
  return { target: low | (middle << 16n) | (high << 32n), present: (data.getUint8(at + 5) & 0x80) !== 0 }
}

/** MSR LSTAR of each vCPU must be where the kernel enters on SYSCALL. */
export function syscallEntryPoint(
  kernel: Kernel,
  where: Whereabouts,
  registers: readonly VcpuRegisters[],
): Candidate[] {
  const candidates: Candidate[] = []
  for (const { index, lstar } of registers) {
    // A vCPU that is not up yet has none.
    if (lstar === undefined || lstar === 0n) continue
    if (lstar === kernel.trySymbol('entry_SYSCALL_64')) continue
    candidates.push({
      hit: {
        id: `diverted-entry:lstar:${index}`,
        kind: 'diverted-entry',
        title: `System calls of vCPU ${index} enter at ${where.name(lstar)} (MSR LSTAR), not at entry_SYSCALL_64`,
        severity: 'critical',
        evidence: where.evidence(lstar, { vcpu: index }),
      },
      identity: `lstar:${index}:${lstar}`,
      // The vCPU stood still while it was read.
      looks: 1,
    })
  }
  return candidates
}
