import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import type { WalkPlan, WalkResult } from '../memory.js'
import type { KernelProfile } from './profile.js'
import type { GuestReader } from './read.js'
import { Rows, throwUnlessComplete, type WalkEnd, walkMany, walkSteadily } from './walks.js'

/** One process, or with `threads` one thread. */
export interface Task {
  /** The thread's number in the initial PID namespace; of a process, the same as `tgid`. */
  readonly pid: number
  /** The process's number: what user space calls its pid. */
  readonly tgid: number
  /** `tgid` of `real_parent`: what `ps` shows as PPID. 0 for the first process and the kernel's `kthreadd`. */
  readonly ppid: number
  /**
   * `task_struct.comm`, at most 15 bytes, as UTF-8 with U+FFFD for what is none. May hold control characters. /proc and
   * `ps` show kernel threads by a longer name that starts with it.
   */
  readonly comm: string
  /** Real user id, in the initial user namespace, of the credentials the task acts with (`cred->uid`). */
  readonly uid: number
  /** True for a thread of the kernel (PF_KTHREAD). */
  readonly kernelThread: boolean
  /** Address of the `task_struct`. */
  readonly task: bigint
  /** Physical address of the page-table root (`mm->pgd`); 0n for a task without memory of its own. */
  readonly dtb: bigint
}

export interface TaskOptions {
  /** Also list every thread; each follows its process. False by default. */
  readonly threads?: boolean
  /** At most so many processes, and so many threads of one process; 65,536 by default. */
  readonly limit?: number
}

export interface TaskList extends WalkEnd {
  readonly tasks: Task[]
  /** Head of the list that did not end well: of the task list, or of one process's threads. */
  readonly at?: bigint
}

/** PF_KTHREAD: include/linux/sched.h. */
const PF_KTHREAD = 0x0020_0000
const DEFAULT_LIMIT = 65_536
const MAX_LIMIT = 1_048_576
/** Threads of all processes together, unless the caller's limit is larger. */
const MAX_THREADS = 262_144
/** Walks of threads in one batch. */
const BATCH = 1024

// Order of the columns of the plan.
const PID = 0
const TGID = 1
const FLAGS = 2
const COMM = 3
const PPID = 4
const UID = 5
const PGD = 6
const SIGNAL = 7

/** What was worked out once per profile. */
interface TaskLayout {
  readonly columns: WalkPlan['columns']
  readonly threadNode: number
  readonly threadHead: number
}

const layouts = new WeakMap<KernelProfile, TaskLayout>()

function layoutOf(profile: KernelProfile): TaskLayout {
  const known = layouts.get(profile)
  if (known !== undefined) return known
  const at = (...path: Parameters<KernelProfile['offset']>[0][]) => path.map((step) => profile.offset(step))
  const layout: TaskLayout = {
    columns: [
      { path: at('task_struct.pid'), size: 4 },
      { path: at('task_struct.tgid'), size: 4 },
      { path: at('task_struct.flags'), size: 4 },
      { path: at('task_struct.comm'), size: profile.sizeOf('task_struct.comm') },
      { path: at('task_struct.real_parent', 'task_struct.tgid'), size: 4 },
      { path: at('task_struct.cred', 'cred.uid'), size: 4 },
      { path: at('task_struct.mm', 'mm_struct.pgd'), size: 8 },
      { path: at('task_struct.signal'), size: 8 },
    ],
    threadNode: profile.offset('task_struct.thread_node'),
    threadHead: profile.offset('signal_struct.thread_head'),
  }
  layouts.set(profile, layout)
  return layout
}

function collect(profile: KernelProfile, rows: Rows): Task[] {
  const tasks: Task[] = []
  for (let row = 0; row < rows.count; row++) {
    tasks.push({
      pid: rows.i32(PID, row),
      tgid: rows.i32(TGID, row),
      ppid: rows.i32(PPID, row),
      comm: rows.text(COMM, row),
      uid: rows.u32(UID, row),
      kernelThread: (rows.u32(FLAGS, row) & PF_KTHREAD) !== 0,
      task: rows.addresses[row] as bigint,
      dtb: rows.some(PGD, row) ? (profile.physical(rows.u64(PGD, row)) ?? 0n) : 0n,
    })
  }
  return tasks
}

/**
 * Lists the tasks in the kernel's own order. `onBroken` says whether a list that does not end well throws or is
 * reported with what could be read.
 */
export async function listTasks(
  linux: GuestReader & { readonly profile: KernelProfile },
  options: TaskOptions,
  onBroken: 'throw' | 'report',
): Promise<TaskList> {
  checkOptions('tasks', options, ['threads', 'limit'])
  const limit = options.limit ?? DEFAULT_LIMIT
  if (!Number.isInteger(limit) || limit < 1 || limit > MAX_LIMIT)
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `tasks: limit must be 1…${MAX_LIMIT}`)
  const { profile, memory, space } = linux
  const layout = layoutOf(profile)
  const node = profile.offset('task_struct.tasks')
  const head = profile.symbol('init_task') + BigInt(node)
  const plan: WalkPlan = { kind: 'list', space, head, node, columns: layout.columns, limit }
  const [walk] = (await walkSteadily(memory, [plan])) as [WalkResult]
  if (onBroken === 'throw') throwUnlessComplete('the task list', head, limit, walk)
  const rows = new Rows(walk, plan)
  const processes = collect(profile, rows)
  const ending = ({ end, fault, consistent }: WalkEnd, at: bigint): WalkEnd & { at?: bigint } => ({
    end,
    consistent,
    ...(fault === undefined ? {} : { fault }),
    ...(end === 'complete' ? {} : { at }),
  })
  if (!options.threads) return { tasks: processes, ...ending(walk, head) }

  const plans: WalkPlan[] = processes.map((_, row) => ({
    kind: 'list',
    space,
    head: rows.u64(SIGNAL, row) + BigInt(layout.threadHead),
    node: layout.threadNode,
    columns: layout.columns,
    limit,
  }))
  const tasks: Task[] = []
  let outcome = ending(walk, head)
  let walked = 0
  const most = Math.max(MAX_THREADS, limit)
  for (let first = 0; first < plans.length; first += BATCH) {
    const batch = plans.slice(first, first + BATCH)
    const walks = await walkMany(memory, batch, most - walked)
    for (const [n, plan] of batch.entries()) {
      const threadWalk = walks[n] as WalkResult
      walked += threadWalk.rows
      const owner = processes[first + n] as Task
      const threads = collect(profile, new Rows(threadWalk, plan)).filter((thread) => thread.tgid === owner.tgid)
      // A process that exits meanwhile has no threads left to list, and its signal struct may be gone.
      const gone = threadWalk.end !== 'complete' && !threadWalk.consistent && threads.length === 0
      if (!gone && threadWalk.end !== 'complete') {
        if (onBroken === 'throw')
          throwUnlessComplete(`the thread list of process ${owner.tgid}`, plan.head, limit, threadWalk)
        if (outcome.end === 'complete') outcome = ending(threadWalk, plan.head)
      }
      const others = threads.filter((thread) => thread.task !== owner.task)
      tasks.push(owner)
      for (const other of others) tasks.push(other)
      if (walked <= most) continue
      // Lists of threads that run into each other make as many threads as there are pairs of them.
      const over: WalkEnd & { rows: number } = { end: 'limit', rows: walked, consistent: threadWalk.consistent }
      if (onBroken === 'throw') throwUnlessComplete('the list of all threads', head, most, over)
      return { tasks, ...ending(over, plan.head) }
    }
  }
  return { tasks, ...outcome }
}
