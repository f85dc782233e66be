import type { Shape } from './types.js'

/** include/linux/{module,kobject}.h and uapi/linux/elf.h, as in `version`. */
export function moduleShapes(version: number): Record<string, Shape> {
  const treeNode: Record<string, Shape> = {
    latch_tree_root: { fixed: true, members: { seq: 'unsigned int', tree: 'struct rb_root[2]' } },
    mod_tree_root: {
      members: { root: 'struct latch_tree_root', addr_min: 'long unsigned int', addr_max: 'long unsigned int' },
    },
    mod_tree_node: { fixed: true, members: { mod: 'struct module *', node: 'struct latch_tree_node' } },
  }
  // 6.4 split a module's memory by kind (enum mod_mem_type), each with an address of its own.
  const memory: Record<string, Shape> =
    version >= 604
      ? {
          module_memory: { filler: 16, members: { base: 'void *', size: 'unsigned int', mtn: 'struct mod_tree_node' } },
        }
      : {
          module_layout: {
            members: {
              base: 'void *',
              size: 'unsigned int',
              text_size: 'unsigned int',
              ro_size: 'unsigned int',
              ro_after_init_size: 'unsigned int',
              mtn: 'struct mod_tree_node',
            },
          },
        }
  const memoryMembers: Record<string, string> =
    version >= 604
      ? { mem: 'struct module_memory[7]' }
      : { core_layout: 'struct module_layout', init_layout: 'struct module_layout' }
  return {
    ...treeNode,
    ...memory,
    kobject: {
      filler: 16,
      members: {
        name: 'char *',
        entry: 'struct list_head',
        parent: 'struct kobject *',
        kset: 'struct kset *',
        ktype: 'struct kobj_type *',
        sd: 'struct kernfs_node *',
        kref: 'struct kref',
        state_initialized: 'unsigned int:1',
        state_in_sysfs: 'unsigned int:1',
        state_add_uevent_sent: 'unsigned int:1',
      },
    },
    kset: {
      members: { list: 'struct list_head', list_lock: 'spinlock_t', kobj: 'struct kobject', uevent_ops: 'void *' },
    },
    module_kobject: {
      filler: 16,
      members: {
        kobj: 'struct kobject',
        mod: 'struct module *',
        drivers_dir: 'struct kobject *',
        mp: 'struct module_param_attrs *',
      },
    },
    elf64_sym: {
      fixed: true,
      members: {
        st_name: 'u32',
        st_info: 'unsigned char',
        st_other: 'unsigned char',
        st_shndx: 'u16',
        st_value: 'u64',
        st_size: 'u64',
      },
    },
    mod_kallsyms: {
      members: { symtab: 'Elf64_Sym *', num_symtab: 'unsigned int', strtab: 'char *', typetab: 'char *' },
    },
    module: {
      filler: 320,
      members: {
        state: 'enum module_state',
        list: 'struct list_head',
        name: 'char[56]',
        mkobj: 'struct module_kobject',
        version: 'char *',
        srcversion: 'char *',
        init: 'fn *',
        ...memoryMembers,
        taints: 'long unsigned int',
        kallsyms: 'struct mod_kallsyms *',
        core_kallsyms: 'struct mod_kallsyms',
        args: 'char *',
        source_list: 'struct list_head',
        target_list: 'struct list_head',
        exit: 'fn *',
        refcnt: 'atomic_t',
      },
    },
  }
}
