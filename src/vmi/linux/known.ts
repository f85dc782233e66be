/**
 * Symbols and fields whose places travel in the header of every kernel profile, so that attaching, listing tasks and
 * listing modules need none of the large sections. A name a kernel does not have is stored as absent.
 *
 * Changing a list changes {@link KNOWN_REVISION}: cached profiles made with another list are not used.
 */
export const KNOWN_SYMBOLS = [
  // Placing the kernel (boot.ts)
  '_text',
  '_stext',
  '_etext',
  '_sinittext',
  '_einittext',
  '__entry_text_start',
  '__entry_text_end',
  '__start_rodata',
  '__end_rodata',
  '_sdata',
  '_edata',
  '_end',
  'phys_base',
  'init_top_pgt',
  'swapper_pg_dir',
  'linux_banner',
  'init_task',
  'page_offset_base',
  'vmalloc_base',
  'vmemmap_base',
  '__pgtable_l5_enabled',
  'nr_cpu_ids',
  '__per_cpu_offset',
  '__cpu_online_mask',
  '__start_notes',
  '__stop_notes',
  '__start_BTF',
  '__stop_BTF',
  'tk_core',
  'timekeeper_data',
  'jiffies_64',
  'init_uts_ns',
  // Lists
  'modules',
  'init_pid_ns',
  'pid_hash',
  'runqueues',
  'module_kset',
  'cgrp_dfl_root',
  'init_css_set',
  'sys_call_table',
  'x64_sys_call',
  'entry_SYSCALL_64',
  'idt_table',
] as const

/** `struct` or `struct.path`: offset and size of each. */
export const KNOWN_FIELDS = [
  'task_struct',
  'task_struct.tasks',
  'task_struct.pid',
  'task_struct.tgid',
  'task_struct.comm',
  'task_struct.flags',
  'task_struct.real_parent',
  'task_struct.cred',
  'task_struct.real_cred',
  'task_struct.mm',
  'task_struct.signal',
  'task_struct.thread_node',
  'task_struct.start_time',
  'task_struct.__state',
  'task_struct.state',
  'signal_struct.thread_head',
  'cred.uid',
  'cred.euid',
  'mm_struct.pgd',
  'list_head',
  'module',
  'module.list',
  'module.name',
  'module.state',
  'module.refcnt',
  'module.kallsyms',
  'module.core_layout',
  'module.init_layout',
  'module.mem',
  'module_layout.base',
  'module_layout.size',
  'module_layout.text_size',
  'module_layout.ro_size',
  'module_memory',
  'module_memory.base',
  'module_memory.size',
  'mod_kallsyms.symtab',
  'mod_kallsyms.num_symtab',
  'mod_kallsyms.strtab',
  'mod_kallsyms.typetab',
  'uts_namespace.name',
  'new_utsname.release',
  'timekeeper.xtime_sec',
  'tk_data.timekeeper',
  'xa_node',
  'xa_node.shift',
  'xa_node.slots',
  'idr.idr_rt',
  'xarray.xa_head',
] as const

export type KnownSymbol = (typeof KNOWN_SYMBOLS)[number]
export type KnownField = (typeof KNOWN_FIELDS)[number]

/** Changes with the lists above and with the layout of the sections. */
export const KNOWN_REVISION: number = (() => {
  let hash = 1
  for (const char of `2;${KNOWN_SYMBOLS.join()};${KNOWN_FIELDS.join()}`)
    hash = (Math.imul(hash, 31) + char.charCodeAt(0)) >>> 0
  return hash
})()
