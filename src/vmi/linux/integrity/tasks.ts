import type { Column, WalkPlan, WalkResult } from '../../memory.js'
import { fixedText, view } from '../read.js'
import type { Book as BrokenBook } from './broken.js'
import type { Candidate } from './hit.js'
import type { Kernel } from './kernel.js'

/** CSS_SET_HASH_BITS, kernel/cgroup/cgroup.c. */
const CSS_SET_BUCKETS = 128
/** MAX_RT_PRIO, include/linux/sched/prio.h. */
const RT_QUEUES = 100
const TASK_LIMIT = 262_144
const CSS_SET_LIMIT = 65_536
/** Elements of all books together: lists of a guest that run into each other have no end between them. */
const ROW_LIMIT = 524_288
/** Walks in one batch. */
const BATCH = 1024
/** A race seldom lasts for one other look; four in a row on the same task is none. */
const LOOKS = 4

/** The kernel's own books on which tasks exist. */
type Book = 'task list' | 'pid IDR' | 'cgroup' | 'run queue'

interface Seen {
  readonly task: bigint
  readonly pid: number
  readonly tgid: number
  readonly comm: string
  readonly startTime: bigint
  readonly leader: bigint
  readonly kernelThread: boolean
  readonly books: Set<Book>
}

/** PF_KTHREAD, include/linux/sched.h. */
const PF_KTHREAD = 0x00200000

/**
 * Tasks that one of the kernel's books has and another that must have them has not: the task list (what
 * for_each_process sees), the pid IDR (what /proc and kill see), the cgroups, and the run queues.
 */
export async function hiddenTasks(kernel: Kernel, signal?: AbortSignal): Promise<Candidate[]> {
  const options = signal === undefined ? {} : { signal }
  const sets = await cssSets(kernel, options)
  const plans = taskPlans(kernel, sets)
  const seen = new Map<bigint, Seen>()
  const idle = new Set<bigint>([kernel.symbol('init_task')])
  const unread = new Set<Book>()
  let rows = 0
  // Large batches: what is read together is read close together in the guest's time.
  for (let i = 0; i < plans.length; i += BATCH) {
    const batch = plans.slice(i, i + BATCH)
    const results = await kernel.walk(
      batch.map((p) => p.plan),
      options,
      (n) => BROKEN[(batch[n] as TaskPlan).book],
      ROW_LIMIT - rows,
    )
    for (const [n, result] of results.entries()) {
      const { book, link } = batch[n] as TaskPlan
      rows += result.rows
      if (book === 'idle') for (const task of result.addresses) idle.add(task)
      else collect(seen, result, book, link)
      if (book === 'pid IDR' && result.end !== 'complete') unread.add(book)
    }
    if (rows > ROW_LIMIT) {
      kernel.broken.note({ what: 'the books of tasks' }, 0n, `have more than ${ROW_LIMIT} elements`)
      break
    }
  }
  const list = await kernel.linux.taskList({ threads: true })
  if (list.end !== 'complete') {
    const main = kernel.symbol('init_task') + BigInt(kernel.offset('task_struct.tasks'))
    const at = list.at ?? main
    const book = at === main ? { what: 'the task list' } : { what: "the list of a process's threads", churns: true }
    kernel.broken.noteEnd(book, at, { ...list, rows: list.tasks.length })
    // Behind the break every process would be a hidden one.
    unread.add('task list')
  }
  for (const task of list.tasks) {
    const entry = seen.get(task.task)
    if (entry !== undefined) entry.books.add('task list')
    else {
      seen.set(task.task, {
        task: task.task,
        pid: task.pid,
        tgid: task.tgid,
        comm: task.comm,
        startTime: 0n,
        leader: 0n,
        kernelThread: task.kernelThread,
        books: new Set(['task list']),
      })
    }
  }
  return [...seen.values()].filter((task) => !idle.has(task.task)).flatMap((task) => judge(task, seen, unread))
}

function judge(task: Seen, all: ReadonlyMap<bigint, Seen>, unread: ReadonlySet<Book>): Candidate[] {
  const missing = (['task list', 'pid IDR'] as const).filter((book) => !unread.has(book) && !task.books.has(book))
  if (missing.length === 0) return []
  const thread = task.pid !== task.tgid
  // The threads of a hidden process are hidden with it: one hit, on the process.
  const leader = all.get(task.leader)
  if (
    thread &&
    leader !== undefined &&
    leader !== task &&
    missing.includes('task list') &&
    !leader.books.has('task list')
  )
    return []
  const what = thread ? 'thread' : task.kernelThread ? 'kernel thread' : 'process'
  const evidence = {
    process: { pid: task.tgid, name: task.comm },
    data: {
      ...(thread ? { thread: task.pid } : {}),
      task: task.task,
      startTime: task.startTime,
      seenIn: [...task.books],
      missingFrom: missing,
    },
  }
  return [
    {
      hit: {
        id: `${thread ? 'hidden-thread' : 'hidden-process'}:${task.pid}:${task.startTime}`,
        kind: thread ? 'hidden-thread' : 'hidden-process',
        title: `Hidden ${what} ${task.pid} (${task.comm}): found in the ${[...task.books].join(', ')}, not in the ${missing.join(' and ')}`,
        severity: 'critical',
        evidence,
      },
      identity: `${task.task}:${task.pid}:${task.startTime}`,
      place: `task:${task.task}`,
      looks: LOOKS,
    },
  ]
}

/** Names of what is walked. Cgroups end and tasks change their run queue while they are looked at. */
const BROKEN: Readonly<Record<Book | 'idle', BrokenBook>> = {
  'task list': { what: 'the task list' },
  'pid IDR': { what: 'the pid IDR' },
  cgroup: { what: 'the list of a cgroup', churns: true },
  'run queue': { what: 'a run queue', churns: true },
  idle: { what: 'the idle task of a run queue', churns: true },
}

interface TaskPlan {
  readonly book: Book | 'idle'
  readonly plan: WalkPlan
  /** Where elements are not tasks: the column that holds a pointer into the task, and its offset there. */
  readonly link?: number
}

function taskPlans(kernel: Kernel, sets: readonly bigint[]): TaskPlan[] {
  const { space } = kernel
  const plans: TaskPlan[] = []
  const columns = taskColumns(kernel, [])
  const pidLinks = kernel.offset('task_struct.pid_links')
  const pidTasks = kernel.offset('pid.tasks')
  plans.push({
    book: 'pid IDR',
    link: pidLinks,
    plan: {
      kind: 'xarray',
      space,
      head: kernel.symbol('init_pid_ns') + BigInt(kernel.offset('pid_namespace.idr.idr_rt.xa_head')),
      shiftOffset: kernel.offset('xa_node.shift'),
      slotsOffset: kernel.offset('xa_node.slots'),
      slots: (kernel.sizeOf('xa_node.slots') / 8) | 0,
      columns: [...taskColumns(kernel, [pidTasks], -pidLinks), { path: [pidTasks], size: 8 }],
      limit: TASK_LIMIT,
    },
  })
  const lists = ['tasks', 'mg_tasks', 'dying_tasks'].filter((list) => kernel.has(`css_set.${list}`))
  const node = kernel.offset('task_struct.cg_list')
  for (const set of sets) {
    for (const list of lists) {
      const head = set + BigInt(kernel.offset(`css_set.${list}`))
      plans.push({ book: 'cgroup', plan: { kind: 'list', space, head, node, columns, limit: TASK_LIMIT } })
    }
  }
  const queued = kernel.offset('task_struct.se.group_node')
  const queuedRt = kernel.offset('task_struct.rt.run_list')
  for (const rq of kernel.runQueues) {
    const at = (field: string) => rq + BigInt(kernel.offset(`rq.${field}`))
    const pointer = (field: string) =>
      ({ kind: 'array', space, head: at(field), count: 1, stride: 8, pointers: true, columns, limit: 1 }) as const
    plans.push({ book: 'run queue', plan: pointer('curr') }, { book: 'idle', plan: pointer('idle') })
    plans.push({
      book: 'run queue',
      plan: { kind: 'list', space, head: at('cfs_tasks'), node: queued, columns, limit: TASK_LIMIT },
    })
    const queues = at('rt.active.queue')
    for (let i = 0; i < RT_QUEUES; i++) {
      const head = queues + BigInt(16 * i)
      plans.push({ book: 'run queue', plan: { kind: 'list', space, head, node: queuedRt, columns, limit: TASK_LIMIT } })
    }
  }
  return plans
}

const FIELDS = ['pid', 'tgid', 'flags', 'start_time', 'group_leader', 'comm'] as const

/** The columns of {@link FIELDS} for a task at the end of `path`, `shift` bytes from where the path points. */
function taskColumns(kernel: Kernel, path: readonly number[], shift = 0): Column[] {
  const size = { pid: 4, tgid: 4, flags: 4, start_time: 8, group_leader: 8, comm: 16 }
  return FIELDS.map((field) => ({
    path: [...path, kernel.offset(`task_struct.${field}`) + shift],
    size: size[field],
  }))
}

async function cssSets(kernel: Kernel, options: { signal?: AbortSignal }): Promise<readonly bigint[]> {
  const [table] = await kernel.walk(
    [
      {
        kind: 'hash',
        space: kernel.space,
        head: kernel.symbol('css_set_table'),
        count: CSS_SET_BUCKETS,
        node: kernel.offset('css_set.hlist'),
        columns: [],
        limit: CSS_SET_LIMIT,
      },
    ],
    options,
    () => ({ what: 'the table of css_sets (cgroups)' }),
  )
  return [...(table as WalkResult).addresses]
}

function collect(seen: Map<bigint, Seen>, result: WalkResult, book: Book, link: number | undefined): void {
  const [pid, tgid, flags, startTime, leader, comm, node] = result.columns.map(view) as [
    DataView,
    DataView,
    DataView,
    DataView,
    DataView,
    DataView,
    DataView | undefined,
  ]
  for (let row = 0; row < result.rows; row++) {
    const cells = result.cells.subarray(row * result.columns.length, (row + 1) * result.columns.length)
    if (cells.some((state) => state !== 0)) continue
    const task =
      link === undefined
        ? (result.addresses[row] as bigint)
        : (node as DataView).getBigUint64(row * 8, true) - BigInt(link)
    const entry = seen.get(task)
    if (entry !== undefined) {
      entry.books.add(book)
      continue
    }
    seen.set(task, {
      task,
      pid: pid.getInt32(row * 4, true),
      tgid: tgid.getInt32(row * 4, true),
      comm: fixedText(new Uint8Array(comm.buffer, comm.byteOffset + row * 16, 16)),
      startTime: startTime.getBigUint64(row * 8, true),
      leader: leader.getBigUint64(row * 8, true),
      kernelThread: (flags.getUint32(row * 4, true) & PF_KTHREAD) !== 0,
      books: new Set([book]),
    })
  }
}
