import { moduleShapes } from './shapes-modules.js'
import { taskShapes } from './shapes-tasks.js'
import type { Shape } from './types.js'

/** What of a release decides on the shape of its structures. */
export interface KernelVersion {
  readonly release: string
  /** major * 100 + minor: 510 for 5.10, 601 for 6.1. */
  readonly version: number
}

/** Reads major and minor from a release such as `6.1.0-18-amd64`. */
export function kernelVersion(release: string): KernelVersion | undefined {
  const [, major, minor] = /^(\d+)\.(\d+)/.exec(release) ?? []
  if (major === undefined || minor === undefined || !/^[\x21-\x7e]{3,64}$/.test(release)) return undefined
  return { release, version: Number(major) * 100 + Number(minor) }
}

/** Shapes that an ABI, the hardware or the memory seam fixes: include/linux/types.h and rbtree_types.h. */
const BASICS: Record<string, Shape> = {
  list_head: { fixed: true, members: { next: 'struct list_head *', prev: 'struct list_head *' } },
  hlist_head: { fixed: true, members: { first: 'struct hlist_node *' } },
  hlist_node: { fixed: true, members: { next: 'struct hlist_node *', pprev: 'struct hlist_node * *' } },
  rb_node: {
    fixed: true,
    members: { __rb_parent_color: 'long unsigned int', rb_right: 'struct rb_node *', rb_left: 'struct rb_node *' },
  },
  rb_root: { fixed: true, members: { rb_node: 'struct rb_node *' } },
  rb_root_cached: { fixed: true, members: { rb_root: 'struct rb_root', rb_leftmost: 'struct rb_node *' } },
  callback_head: { fixed: true, members: { next: 'struct callback_head *', func: 'fn *' } },
  kuid_t: { fixed: true, members: { val: 'unsigned int' } },
  kgid_t: { fixed: true, members: { val: 'unsigned int' } },
  atomic_t: { fixed: true, members: { counter: 'int' } },
  refcount_struct: { fixed: true, members: { refs: 'atomic_t' } },
  kref: { fixed: true, members: { refcount: 'refcount_t' } },
  spinlock: { fixed: true, members: { val: 'unsigned int' } },
  mutex: { fixed: true, members: { owner: 'long int', wait_lock: 'spinlock_t', wait_list: 'struct list_head' } },
  pgd_t: { fixed: true, members: { pgd: 'long unsigned int' } },
  pt_regs: { fixed: true, members: { orig_ax: 'long unsigned int', ip: 'long unsigned int' } },
}

/** arch/x86/include/asm/desc_defs.h; Intel SDM vol. 3A, 6.14.1. */
const DESCRIPTORS: Record<string, Shape> = {
  idt_bits: { fixed: true, members: { ist: 'u16:3', zero: 'u16:5', type: 'u16:5', dpl: 'u16:2', p: 'u16:1' } },
  gate_struct: {
    fixed: true,
    members: {
      offset_low: 'u16',
      segment: 'u16',
      bits: 'struct idt_bits',
      offset_middle: 'u16',
      offset_high: 'u32',
      reserved: 'u32',
    },
  },
  desc_ptr: { fixed: true, packed: true, members: { size: 'short unsigned int', address: 'long unsigned int' } },
}

/** Hooks the kernel has for itself: include/linux/{ftrace,kprobes}.h, kernel/trace/trace.h. */
const HOOKS: Record<string, Shape> = {
  ftrace_hash: {
    filler: 16,
    members: {
      size_bits: 'long unsigned int',
      buckets: 'struct hlist_head *',
      count: 'long unsigned int',
      flags: 'long unsigned int',
      rcu: 'struct callback_head',
    },
  },
  ftrace_ops_hash: {
    members: { notrace_hash: 'struct ftrace_hash *', filter_hash: 'struct ftrace_hash *', regex_lock: 'struct mutex' },
  },
  ftrace_func_entry: {
    members: { hlist: 'struct hlist_node', ip: 'long unsigned int', direct: 'long unsigned int' },
  },
  ftrace_ops: {
    filler: 32,
    members: {
      func: 'fn *',
      next: 'struct ftrace_ops *',
      flags: 'long unsigned int',
      private: 'void *',
      saved_func: 'fn *',
      local_hash: 'struct ftrace_ops_hash',
      func_hash: 'struct ftrace_ops_hash *',
      old_hash: 'struct ftrace_ops_hash',
      trampoline: 'long unsigned int',
      trampoline_size: 'long unsigned int',
      list: 'struct list_head',
      ops_func: 'fn *',
    },
  },
  kprobe: {
    filler: 32,
    members: {
      hlist: 'struct hlist_node',
      list: 'struct list_head',
      nmissed: 'long unsigned int',
      addr: 'kprobe_opcode_t *',
      symbol_name: 'char *',
      offset: 'unsigned int',
      pre_handler: 'fn *',
      post_handler: 'fn *',
      opcode: 'kprobe_opcode_t',
      flags: 'u32',
    },
  },
  kretprobe: {
    filler: 16,
    members: { kp: 'struct kprobe', handler: 'fn *', entry_handler: 'fn *', maxactive: 'int', nmissed: 'int' },
  },
  kprobe_insn_cache: {
    members: {
      mutex: 'struct mutex',
      alloc: 'fn *',
      free: 'fn *',
      pages: 'struct list_head',
      insn_size: 'size_t',
      nr_garbage: 'int',
    },
  },
  kprobe_insn_page: {
    members: {
      list: 'struct list_head',
      insns: 'kprobe_opcode_t *',
      cache: 'struct kprobe_insn_cache *',
      nused: 'int',
      ngarbage: 'int',
      slot_used: 'char[]',
    },
  },
}

/** Memory the kernel allots itself: include/linux/{vmalloc,bpf}.h, kernel/bpf/core.c, mm/vmalloc.c. */
function areaShapes(version: number): Record<string, Shape> {
  const shapes: Record<string, Shape> = {
    vmap_area: {
      members: {
        va_start: 'long unsigned int',
        va_end: 'long unsigned int',
        rb_node: 'struct rb_node',
        list: 'struct list_head',
        '.0': { kind: 'union', members: { subtree_max_size: 'long unsigned int', vm: 'struct vm_struct *' } },
      },
    },
    vm_struct: {
      filler: 16,
      members: {
        next: 'struct vm_struct *',
        addr: 'void *',
        size: 'long unsigned int',
        flags: 'long unsigned int',
        pages: 'struct page * *',
        nr_pages: 'unsigned int',
        phys_addr: 'u64',
        caller: 'void *',
      },
    },
    latch_tree_node: { fixed: true, members: { node: 'struct rb_node[2]' } },
    bpf_ksym: {
      members: {
        start: 'long unsigned int',
        end: 'long unsigned int',
        name: version >= 600 ? 'char[512]' : 'char[128]',
        lnode: 'struct list_head',
        tnode: 'struct latch_tree_node',
        prog: 'bool',
      },
    },
  }
  if (version >= 518) {
    shapes.bpf_prog_pack = {
      members: { list: 'struct list_head', ptr: 'void *', bitmap: 'long unsigned int[]' },
    }
  }
  if (version >= 609) {
    shapes.rb_list = { members: { root: 'struct rb_root', head: 'struct list_head', lock: 'spinlock_t' } }
    shapes.vmap_node = { filler: 64, members: { busy: 'struct rb_list', lazy: 'struct rb_list' } }
  }
  return shapes
}

/** Names and time: include/linux/{utsname,timekeeper_internal}.h. */
const NAMES: Record<string, Shape> = {
  new_utsname: {
    fixed: true,
    members: {
      sysname: 'char[65]',
      nodename: 'char[65]',
      release: 'char[65]',
      version: 'char[65]',
      machine: 'char[65]',
      domainname: 'char[65]',
    },
  },
  uts_namespace: { filler: 24, members: { name: 'struct new_utsname', user_ns: 'struct user_namespace *' } },
  timekeeper: { filler: 64, members: { xtime_sec: 'u64', ktime_sec: 'long unsigned int', raw_sec: 'u64' } },
}

/** Every structure the synthetic kernel declares, shaped as in `version`. */
export function kernelShapes(version: number): Record<string, Shape> {
  return {
    ...BASICS,
    ...taskShapes(version),
    ...moduleShapes(version),
    ...DESCRIPTORS,
    ...HOOKS,
    ...areaShapes(version),
    ...NAMES,
  }
}
