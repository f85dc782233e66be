import { buildTree, type StructRef } from '../machine/structs.js'
import type { Kernel } from './kernel.js'

/** How a task stands with the scheduler. */
export type RunState = 'running' | 'queued' | 'queued-rt' | 'sleeping'

/** Per-CPU areas and the run queues in them. */
export class RunQueues {
  readonly #kernel: Kernel
  readonly #queues: StructRef[] = []
  readonly #waiting: StructRef[][] = []
  /** Where each CPU's area begins. */
  readonly areas: readonly bigint[]

  constructor(kernel: Kernel, cpus: number) {
    this.#kernel = kernel
    const { image, lists, machine, types } = kernel
    const runqueues = image.percpu('runqueues', types.sizeof('rq'))
    const current = image.percpu('current_task', 8, 8)
    const number = image.percpu('cpu_number', 4, 4)
    const self = image.percpu('this_cpu_off', 8, 8)
    image.percpu('cpu_tss_rw', 4096, 4096)
    const offsets = image.variable('__per_cpu_offset', Math.max(cpus, 8) * 8)
    const areas: bigint[] = []
    for (let cpu = 0; cpu < cpus; cpu++) {
      const area = machine.direct(machine.allocPages(image.percpuSize / 4096))
      const offset = area - image.percpuBase
      areas.push(area)
      machine.setU64(offsets + BigInt(cpu * 8), offset)
      machine.setU32(offset + number, cpu)
      machine.setU64(offset + self, offset)
      const queue = kernel.at('rq', BigInt.asUintN(64, offset + runqueues))
      lists.init(queue.at('cfs_tasks'))
      for (let i = 0; i < 100; i++) lists.init(queue.at(`rt.active.queue[${i}]`))
      queue.setAll({ cpu, online: 1, 'cfs.rq': queue.address })
      this.#queues.push(queue)
      this.#waiting.push([])
    }
    this.areas = areas
    this.#current = current
    this.#base = image.percpuBase
  }

  readonly #current: bigint
  readonly #base: bigint

  /** Makes `task` the idle task of a CPU, and what it runs now. */
  setIdle(cpu: number, task: bigint): void {
    this.#queue(cpu).setAll({ idle: task, curr: task })
    this.#kernel.machine.setU64(this.#areaOf(cpu) + this.#current - this.#base, task)
  }

  /** Puts a task on a CPU or its queue. */
  put(task: StructRef, cpu: number, state: RunState, index: number): void {
    const queue = this.#queue(cpu)
    const { lists, machine } = this.#kernel
    lists.init(task.at('se.group_node'))
    lists.init(task.at('rt.run_list'))
    if (state === 'sleeping') return
    task.setAll({ on_rq: 1, on_cpu: state === 'running' ? 1 : 0 })
    queue.set('nr_running', queue.get('nr_running') + 1n)
    if (state === 'queued-rt') {
      const priority = index % 100
      task.set('prio', priority)
      lists.addTail(queue.at(`rt.active.queue[${priority}]`), task.at('rt.run_list'))
      return
    }
    task.setAll({ 'se.on_rq': 1, 'se.cfs_rq': queue.at('cfs'), prio: 120 })
    lists.add(queue.at('cfs_tasks'), task.at('se.group_node'))
    if (state === 'running') {
      queue.setAll({ curr: task.address, 'cfs.curr': task.at('se') })
      machine.setU64(this.#areaOf(cpu) + this.#current - this.#base, task.address)
      return
    }
    // The running task stands beside the tree of those that wait.
    const waiting = this.#waiting[cpu] as StructRef[]
    waiting.push(task)
    const nodes = waiting.map((waits) => waits.at('se.run_node'))
    buildTree(machine, queue.at('cfs.tasks_timeline.rb_root'), nodes)
    machine.setU64(queue.at('cfs.tasks_timeline.rb_leftmost'), nodes[0] as bigint)
  }

  #queue(cpu: number): StructRef {
    const queue = this.#queues[cpu]
    if (queue === undefined) throw new RangeError(`the guest has no CPU ${cpu}`)
    return queue
  }

  #areaOf(cpu: number): bigint {
    return this.areas[cpu] as bigint
  }
}
