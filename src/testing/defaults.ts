import type { ModuleSpec } from './kernel/modules.js'
import type { TaskSpec } from './kernel/tasks.js'

const KERNEL_THREADS: readonly (readonly [number, string])[] = [
  [3, 'rcu_gp'],
  [4, 'rcu_par_gp'],
  [6, 'kworker/0:0H-events_highpri'],
  [8, 'mm_percpu_wq'],
  [10, 'rcu_tasks_kthre'],
  [12, 'ksoftirqd/0'],
  [13, 'rcu_preempt'],
  [14, 'migration/0'],
  [16, 'cpuhp/0'],
  [21, 'kdevtmpfs'],
  [24, 'kauditd'],
  [25, 'khungtaskd'],
  [26, 'oom_reaper'],
  [28, 'kcompactd0'],
  [29, 'ksmd'],
  [38, 'kswapd0'],
]

/** What runs in a small server, when nothing else is asked for. */
export const DEFAULT_TASKS: readonly TaskSpec[] = [
  { pid: 1, comm: 'systemd', cgroup: '/init.scope' },
  { pid: 2, comm: 'kthreadd', kernelThread: true },
  ...KERNEL_THREADS.map(([pid, comm]) => ({ pid, comm, kernelThread: true })),
  { pid: 214, comm: 'systemd-journal', cgroup: '/system.slice/systemd-journald.service' },
  { pid: 230, comm: 'systemd-udevd', cgroup: '/system.slice/systemd-udevd.service' },
  { pid: 412, comm: 'dbus-daemon', uid: 104, cgroup: '/system.slice/dbus.service' },
  {
    pid: 431,
    comm: 'rsyslogd',
    cgroup: '/system.slice/rsyslog.service',
    threads: [
      { pid: 440, comm: 'in:imuxsock' },
      { pid: 441, comm: 'in:imklog' },
      { pid: 442, comm: 'rs:main Q:Reg' },
    ],
  },
  { pid: 502, comm: 'sshd', cgroup: '/system.slice/ssh.service' },
  { pid: 533, comm: 'nginx', cgroup: '/system.slice/nginx.service' },
  { pid: 534, comm: 'nginx', uid: 33, ppid: 533, state: 'queued', cgroup: '/system.slice/nginx.service' },
  { pid: 901, comm: 'sshd', ppid: 502, cgroup: '/user.slice' },
  { pid: 915, comm: 'bash', uid: 1000, ppid: 901, cgroup: '/user.slice' },
  { pid: 1042, comm: 'top', uid: 1000, ppid: 915, state: 'running', cgroup: '/user.slice' },
]

export const DEFAULT_MODULES: readonly ModuleSpec[] = [
  { name: 'crc16', size: 16_384 },
  { name: 'mbcache', size: 16_384 },
  { name: 'jbd2', size: 131_072 },
  { name: 'ext4', size: 655_360 },
  { name: 'virtio_net', size: 61_440 },
  { name: 'virtio_blk', size: 32_768 },
]
