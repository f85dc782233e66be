import { branch, type Image } from './image.js'
import { syscallNames } from './syscalls.js'

/** Words the names of uninteresting functions are put together from. */
const VERBS =
  'alloc free get put set init register unregister update add remove find read write lock unlock flush'.split(' ')
const NOUNS =
  'inode dentry page folio slab timer irq device driver bus sock skb route neigh queue bio request zone node cpu clock trace event signal'.split(
    ' ',
  )
const TAILS = [
  '',
  '_locked',
  '_rcu',
  '_noprof',
  '_slow',
  '_one',
  '_all',
  '_sync',
  '_range',
  '.cold',
  '.isra.0',
  '.constprop.0',
]

/** Functions that other parts of the kernel point to. */
const NAMED = [
  'start_kernel',
  'schedule',
  'do_exit',
  'kthread',
  'kernel_clone',
  'do_syscall_64',
  'ftrace_stub',
  'function_trace_call',
  'kprobe_ftrace_handler',
  'aggr_pre_handler',
  'pre_handler_kretprobe',
  'bpf_jit_alloc_exec',
  'bpf_prog_pack_alloc',
  'module_alloc',
  'load_module',
  'free_module',
  'tcp4_seq_show',
  'vfs_read',
  'iterate_dir',
  'commit_creds',
  'prepare_kernel_cred',
] as const

/** Entries of the interrupt table that are not one of many alike: arch/x86/include/asm/{trapnr,idtentry}.h. */
const EXCEPTIONS: Readonly<Record<number, string>> = {
  0: 'asm_exc_divide_error',
  1: 'asm_exc_debug',
  2: 'asm_exc_nmi',
  3: 'asm_exc_int3',
  4: 'asm_exc_overflow',
  5: 'asm_exc_bounds',
  6: 'asm_exc_invalid_op',
  7: 'asm_exc_device_not_available',
  8: 'asm_exc_double_fault',
  10: 'asm_exc_invalid_tss',
  11: 'asm_exc_segment_not_present',
  12: 'asm_exc_stack_segment',
  13: 'asm_exc_general_protection',
  14: 'asm_exc_page_fault',
  16: 'asm_exc_coprocessor_error',
  17: 'asm_exc_alignment_check',
  18: 'asm_exc_machine_check',
  19: 'asm_exc_simd_coprocessor_error',
}

/** Fills the text: entry code, system calls, and functions without meaning. */
export function fillText(image: Image, functions: number): void {
  image.label('_text', 'T', image.cursor('text'))
  image.label('_stext', 'T', image.cursor('text'))
  image.function('startup_64', { traced: false })
  for (const name of NAMED) image.function(name)
  image.function('__pfx_unused', { type: 't' })
  fillSyscalls(image)
  const names = new Set<string>()
  while (names.size < functions) {
    const pick = (words: readonly string[]) => words[image.random.below(words.length)] as string
    const name = `${pick(VERBS)}_${pick(NOUNS)}_${pick(NOUNS)}${pick(TAILS)}`
    if (names.has(name) || image.find(name) !== undefined) continue
    names.add(name)
    image.function(name, { type: image.random.below(2) === 0 ? 'T' : 't' })
  }
  fillEntryText(image)
  image.take('text', 0, 4096)
  image.label('_etext', 'T', image.cursor('text'))
}

function fillSyscalls(image: Image): void {
  const names = syscallNames()
  image.function('__x64_sys_ni_syscall')
  for (const name of new Set(names)) {
    if (name === undefined || name === 'ni_syscall') continue
    image.function(`__do_sys_${name}`, { type: 't' })
    image.function(`__x64_sys_${name}`)
    image.function(`__ia32_sys_${name}`)
  }
  const target = (name: string | undefined) => image.symbol(`__x64_sys_${name ?? 'ni_syscall'}`)
  const table = image.take('rodata', names.length * 8, 64)
  names.forEach((name, number) => {
    image.machine.setU64(table + BigInt(number * 8), target(name))
  })
  image.label('sys_call_table', 'D', table)
  image.label('ia32_sys_call_table', 'D', image.take('rodata', 8, 64))
  image.machine.setU64(image.symbol('ia32_sys_call_table'), image.symbol('__ia32_sys_read'))
  image.label('__end_of_tables', 'd', image.take('rodata', 8, 64))
  // The dispatcher that calls each function itself, as kernels do since 6.9 and their stable branches.
  const at = image.function('x64_sys_call', { size: 16 + names.length * 5 })
  let from = at + 16n
  for (const name of names) {
    image.machine.setBytes(from, branch(0xe8, from, target(name)))
    from += 5n
  }
}

function fillEntryText(image: Image): void {
  image.take('text', 0, 4096)
  image.label('__entry_text_start', 'T', image.cursor('text'))
  image.function('asm_load_gs_index', { traced: false, size: 64 })
  image.function('entry_SYSCALL_64', { traced: false, size: 96 })
  image.function('entry_SYSCALL_compat', { traced: false, size: 96 })
  const idt = image.label('idt_table', 'B', image.take('data', 4096, 4096))
  const interrupts = image.function('irq_entries_start', { traced: false, size: 16 * 224 })
  for (let vector = 0; vector < 256; vector++) {
    const name = EXCEPTIONS[vector]
    if (name === undefined && vector < 32) continue
    const target =
      name === undefined ? interrupts + BigInt((vector - 32) * 16) : image.function(name, { traced: false, size: 48 })
    setGate(image, idt + BigInt(vector * 16), target, vector === 3 || vector === 4 || vector === 128 ? 3 : 0)
  }
  image.label('__entry_text_end', 'T', image.cursor('text'))
}

/** Writes an interrupt gate: Intel SDM vol. 3A, 6.14.1; __KERNEL_CS is 0x10. */
export function setGate(image: Image, at: bigint, target: bigint, privilege: number): void {
  const { machine } = image
  machine.setU16(at, Number(target & 0xffffn))
  machine.setU16(at + 2n, 0x10)
  machine.setU16(at + 4n, 0x8e00 | (privilege << 13))
  machine.setU16(at + 6n, Number((target >> 16n) & 0xffffn))
  machine.setU32(at + 8n, Number(target >> 32n))
  machine.setU32(at + 12n, 0)
}
