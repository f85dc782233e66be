import type { Shape } from './types.js'

/** include/linux/{sched,cred,pid,pid_namespace,mm_types,xarray,idr}.h and sched/signal.h. */
function processes(version: number): Record<string, Shape> {
  return {
    thread_info: {
      fixed: true,
      members: { flags: 'long unsigned int', syscall_work: 'long unsigned int', status: 'u32' },
    },
    load_weight: { fixed: true, members: { weight: 'long unsigned int', inv_weight: 'u32' } },
    sched_entity: {
      filler: 64,
      members: {
        load: 'struct load_weight',
        run_node: 'struct rb_node',
        group_node: 'struct list_head',
        on_rq: 'unsigned int',
        vruntime: 'u64',
        cfs_rq: 'struct cfs_rq *',
      },
    },
    sched_rt_entity: {
      filler: 16,
      members: { run_list: 'struct list_head', timeout: 'long unsigned int', on_rq: 'short unsigned int' },
    },
    task_struct: {
      first: 'thread_info',
      filler: 2400,
      members: {
        thread_info: 'struct thread_info',
        ...(version >= 514 ? { __state: 'unsigned int' } : { state: 'long int' }),
        stack: 'void *',
        usage: 'refcount_t',
        flags: 'unsigned int',
        ptrace: 'unsigned int',
        on_cpu: 'int',
        on_rq: 'int',
        prio: 'int',
        se: 'struct sched_entity',
        rt: 'struct sched_rt_entity',
        policy: 'unsigned int',
        tasks: 'struct list_head',
        mm: 'struct mm_struct *',
        active_mm: 'struct mm_struct *',
        exit_state: 'int',
        exit_code: 'int',
        in_execve: 'unsigned int:1',
        in_iowait: 'unsigned int:1',
        pid: 'pid_t',
        tgid: 'pid_t',
        stack_canary: 'long unsigned int',
        real_parent: 'struct task_struct *',
        parent: 'struct task_struct *',
        children: 'struct list_head',
        sibling: 'struct list_head',
        group_leader: 'struct task_struct *',
        thread_pid: 'struct pid *',
        pid_links: 'struct hlist_node[4]',
        ...(version < 607 ? { thread_group: 'struct list_head' } : {}),
        thread_node: 'struct list_head',
        utime: 'u64',
        stime: 'u64',
        start_time: 'u64',
        ...(version >= 505 ? { start_boottime: 'u64' } : { real_start_time: 'u64' }),
        ptracer_cred: 'struct cred *',
        real_cred: 'struct cred *',
        cred: 'struct cred *',
        comm: 'char[16]',
        fs: 'struct fs_struct *',
        files: 'struct files_struct *',
        nsproxy: 'struct nsproxy *',
        signal: 'struct signal_struct *',
        sighand: 'struct sighand_struct *',
        loginuid: 'kuid_t',
        sessionid: 'unsigned int',
        cgroups: 'struct css_set *',
        cg_list: 'struct list_head',
        '.rcu': { kind: 'union', members: { rcu_users: 'refcount_t', rcu: 'struct callback_head' } },
      },
    },
    signal_struct: {
      filler: 320,
      members: {
        sigcnt: 'refcount_t',
        live: 'atomic_t',
        nr_threads: 'int',
        thread_head: 'struct list_head',
        group_exit_code: 'int',
        flags: 'unsigned int',
        pids: 'struct pid *[4]',
        oom_score_adj: 'short int',
      },
    },
    cred: {
      filler: 48,
      members: {
        usage: 'atomic_t',
        uid: 'kuid_t',
        gid: 'kgid_t',
        suid: 'kuid_t',
        sgid: 'kgid_t',
        euid: 'kuid_t',
        egid: 'kgid_t',
        fsuid: 'kuid_t',
        fsgid: 'kgid_t',
        securebits: 'unsigned int',
        cap_permitted: 'u64',
        cap_effective: 'u64',
        user_ns: 'struct user_namespace *',
      },
    },
    mm_struct: {
      first: '.0',
      members: {
        '.0': {
          filler: 480,
          members: {
            ...(version >= 601
              ? { mm_mt: 'struct maple_tree' }
              : { mmap: 'struct vm_area_struct *', mm_rb: 'struct rb_root' }),
            mmap_base: 'long unsigned int',
            task_size: 'long unsigned int',
            pgd: 'pgd_t *',
            mm_users: 'atomic_t',
            mm_count: 'atomic_t',
            map_count: 'int',
            mmlist: 'struct list_head',
            total_vm: 'long unsigned int',
            start_code: 'long unsigned int',
            end_code: 'long unsigned int',
            start_stack: 'long unsigned int',
            arg_start: 'long unsigned int',
            arg_end: 'long unsigned int',
            env_start: 'long unsigned int',
            env_end: 'long unsigned int',
            owner: 'struct task_struct *',
            exe_file: 'struct file *',
          },
        },
        cpu_bitmap: 'long unsigned int[]',
      },
    },
    ...(version >= 601
      ? { maple_tree: { fixed: true, members: { ma_lock: 'spinlock_t', ma_flags: 'unsigned int', ma_root: 'void *' } } }
      : {}),
    upid: { members: { nr: 'int', ns: 'struct pid_namespace *' } },
    pid: {
      filler: 24,
      members: {
        count: 'refcount_t',
        level: 'unsigned int',
        lock: 'spinlock_t',
        tasks: 'struct hlist_head[4]',
        rcu: 'struct callback_head',
        numbers: version >= 605 ? 'struct upid[]' : 'struct upid[1]',
      },
    },
    xarray: { members: { xa_lock: 'spinlock_t', xa_flags: 'gfp_t', xa_head: 'void *' } },
    idr: { members: { idr_rt: 'struct xarray', idr_base: 'unsigned int', idr_next: 'unsigned int' } },
    xa_node: {
      members: {
        shift: 'unsigned char',
        offset: 'unsigned char',
        count: 'unsigned char',
        nr_values: 'unsigned char',
        parent: 'struct xa_node *',
        array: 'struct xarray *',
        '.0': { kind: 'union', members: { private_list: 'struct list_head', callback_head: 'struct callback_head' } },
        slots: 'void *[64]',
        '.1': { kind: 'union', members: { tags: 'long unsigned int[3]', marks: 'long unsigned int[3]' } },
      },
    },
    pid_namespace: {
      filler: 32,
      members: {
        idr: 'struct idr',
        pid_allocated: 'unsigned int',
        child_reaper: 'struct task_struct *',
        level: 'unsigned int',
        parent: 'struct pid_namespace *',
        user_ns: 'struct user_namespace *',
      },
    },
  }
}

/** kernel/sched/sched.h. */
const RUN_QUEUES: Record<string, Shape> = {
  cfs_rq: {
    filler: 128,
    members: {
      load: 'struct load_weight',
      nr_running: 'unsigned int',
      tasks_timeline: 'struct rb_root_cached',
      curr: 'struct sched_entity *',
      rq: 'struct rq *',
    },
  },
  rt_prio_array: { members: { bitmap: 'long unsigned int[2]', queue: 'struct list_head[100]' } },
  rt_rq: { filler: 32, members: { active: 'struct rt_prio_array', rt_nr_running: 'unsigned int' } },
  rq: {
    filler: 640,
    members: {
      __lock: 'spinlock_t',
      nr_running: 'unsigned int',
      nr_switches: 'u64',
      cfs: 'struct cfs_rq',
      rt: 'struct rt_rq',
      curr: 'struct task_struct *',
      idle: 'struct task_struct *',
      stop: 'struct task_struct *',
      clock: 'u64',
      cpu: 'int',
      online: 'int',
      cfs_tasks: 'struct list_head',
    },
  },
}

/** include/linux/cgroup-defs.h. */
const CGROUPS: Record<string, Shape> = {
  cgroup_subsys_state: {
    filler: 96,
    members: {
      cgroup: 'struct cgroup *',
      ss: 'struct cgroup_subsys *',
      sibling: 'struct list_head',
      children: 'struct list_head',
      id: 'int',
      flags: 'unsigned int',
      parent: 'struct cgroup_subsys_state *',
    },
  },
  cgroup: {
    first: 'self',
    filler: 256,
    members: {
      self: 'struct cgroup_subsys_state',
      flags: 'long unsigned int',
      level: 'int',
      nr_descendants: 'int',
      kn: 'struct kernfs_node *',
      root: 'struct cgroup_root *',
      cset_links: 'struct list_head',
      e_csets: 'struct list_head[14]',
    },
  },
  cgroup_root: {
    filler: 64,
    members: {
      kf_root: 'struct kernfs_root *',
      subsys_mask: 'unsigned int',
      hierarchy_id: 'int',
      root_list: 'struct list_head',
      cgrp: 'struct cgroup',
      name: 'char[64]',
    },
  },
  // include/linux/kernfs.h.
  kernfs_node: {
    filler: 48,
    members: {
      parent: 'struct kernfs_node *',
      name: 'char *',
    },
  },
  cgrp_cset_link: {
    members: {
      cgrp: 'struct cgroup *',
      cset: 'struct css_set *',
      cset_link: 'struct list_head',
      cgrp_link: 'struct list_head',
    },
  },
  css_set: {
    filler: 128,
    members: {
      subsys: 'struct cgroup_subsys_state *[14]',
      refcount: 'refcount_t',
      dom_cset: 'struct css_set *',
      dfl_cgrp: 'struct cgroup *',
      nr_tasks: 'int',
      tasks: 'struct list_head',
      mg_tasks: 'struct list_head',
      dying_tasks: 'struct list_head',
      task_iters: 'struct list_head',
      hlist: 'struct hlist_node',
      cgrp_links: 'struct list_head',
      dead: 'bool',
    },
  },
}

/** Structures of tasks, scheduling and cgroups as in `version`. */
export function taskShapes(version: number): Record<string, Shape> {
  return { ...processes(version), ...RUN_QUEUES, ...CGROUPS }
}
