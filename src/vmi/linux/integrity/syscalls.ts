import { view } from '../read.js'
import { ENTRY_BYTES, entryBranch } from './branch.js'
import type { Candidate } from './hit.js'
import { diverted, isSyscall } from './hooks.js'
import type { Kernel } from './kernel.js'
import type { Whereabouts } from './where.js'

/** Jumps from one place of the kernel's text to the next that are followed from an entry. */
const HOPS = 4
/** Entries of a system call table at most (NR_syscalls is below 500). */
const TABLE_ENTRIES = 1024
/** Text is patched through a breakpoint for a moment; one that stays is somebody's. */
const BREAKPOINT_LOOKS = 8
const MAX_ENTRIES = 16_384

/** Functions that dispatch system calls, beside the functions of the calls themselves. */
const DISPATCHERS = [
  'entry_SYSCALL_64',
  'do_syscall_64',
  'x64_sys_call',
  'x32_sys_call',
  'ia32_sys_call',
  'do_int80_syscall_32',
  'do_fast_syscall_32',
]

/** Follows the entry of every system call's functions: where it is diverted it must lead into known code. */
export async function syscallEntries(
  kernel: Kernel,
  where: Whereabouts,
  probed: ReadonlySet<bigint>,
  options: { readonly signal?: AbortSignal },
): Promise<Candidate[]> {
  const candidates: Candidate[] = []
  let trails = entries(kernel).map((entry) => ({ entry, at: entry }))
  for (let hop = 0; hop < HOPS && trails.length > 0; hop++) {
    const length = ENTRY_BYTES
    const at = BigUint64Array.from(trails, (trail) => trail.at)
    const [read] = await kernel.memory.read([{ space: kernel.space, at, length }], options)
    const faulted = new Set(read?.faults.map((fault) => fault.index))
    const next: typeof trails = []
    for (const [i, { entry, at }] of trails.entries()) {
      if (read === undefined || faulted.has(i)) {
        // Only init functions have a reason not to be mapped, and they lie behind the text.
        if (where.isKernel(entry)) kernel.broken.note({ what: 'the text of system calls' }, 0n, 'can not be read')
        continue
      }
      const branch = entryBranch(read.bytes.subarray(i * length, (i + 1) * length), at)
      if (branch === undefined) continue
      const address = at + BigInt(branch.offset)
      if (branch.kind === 'breakpoint') {
        if (!probed.has(address) && hop === 0) candidates.push(breakpoint(kernel, where, entry, address))
        continue
      }
      const target = branch.target ?? (await kernel.pointer(branch.pointer as bigint, options))
      if (where.isKnown(target)) {
        // A call returns and the function runs on; a jump in kernel text may lead on to the next.
        if (branch.kind !== 'call' && where.isKernel(target)) next.push({ entry, at: target })
        continue
      }
      const mechanism = branch.kind === 'call' ? 'a patched call' : 'a patched jump'
      candidates.push(
        diverted(
          kernel,
          where,
          { address: entry, mechanism, target },
          { patchedAt: address, via: where.name(address) },
        ),
      )
    }
    trails = next
  }
  return candidates
}

function breakpoint(kernel: Kernel, where: Whereabouts, entry: bigint, address: bigint): Candidate {
  const from = { address: entry, mechanism: 'a breakpoint no kprobe owns', target: address, looks: BREAKPOINT_LOOKS }
  return diverted(kernel, where, from, { patchedAt: address })
}

function entries(kernel: Kernel): bigint[] {
  const found = new Set<bigint>()
  for (const prefix of ['__x64_', '__ia32_', '__do_', '__se_', 'sys_', 'compat_sys_']) {
    for (const symbol of kernel.symbolsWith(prefix)) {
      if (isSyscall(symbol.name) && /^[tTwW]$/.test(symbol.type)) found.add(symbol.address)
      if (found.size >= MAX_ENTRIES) break
    }
  }
  for (const name of DISPATCHERS) {
    const address = kernel.trySymbol(name)
    if (address !== undefined) found.add(address)
  }
  return [...found]
}

/** Each entry of the system call tables must be the first byte of a kernel function. */
export async function syscallTables(
  kernel: Kernel,
  where: Whereabouts,
  options: { readonly signal?: AbortSignal },
): Promise<Candidate[]> {
  const candidates: Candidate[] = []
  for (const name of ['sys_call_table', 'ia32_sys_call_table', 'x32_sys_call_table']) {
    const table = kernel.trySymbol(name)
    if (table === undefined) continue
    const end = kernel.symbolAfter(table) ?? table
    const count = Math.min(Number((end - table) / 8n), TABLE_ENTRIES)
    if (count === 0) continue
    const [read] = await kernel.memory.read([{ space: kernel.space, at: table, length: 8 * count }], options)
    if (read === undefined) continue
    if (read.faults.length > 0) kernel.broken.note({ what: name }, table, 'can not be read')
    const data = view(read.bytes)
    for (let number = 0; number < count; number++) {
      const target = data.getBigUint64(8 * number, true)
      // Padding behind the table is zero.
      if (target === 0n || (where.isKernel(target) && kernel.symbolAt(target)?.offset === 0n)) continue
      if (where.isKnown(target) && !where.isKernel(target)) continue
      candidates.push({
        hit: {
          id: `diverted:${name}:${number}`,
          kind: 'diverted-syscall',
          title: `Entry ${number} of ${name} leads to ${where.name(target)}`,
          severity: 'critical',
          evidence: where.evidence(target, {
            table: name,
            number,
            at: table + BigInt(8 * number),
            mechanism: 'a table entry',
          }),
        },
        identity: `${name}:${number}:${target}`,
        looks: 2,
      })
    }
  }
  return candidates
}
