import type { VmIdentity } from '../vmi/guest.js'
import { Loop, type Tick } from './every.js'
import type { HandlerContext } from './handlers.js'
import type { HealthState } from './health.js'
import { Run } from './runs.js'
import { inScope, type VmScope } from './scope.js'
import type { StoredChange } from './store/rows.js'

interface ScanOptions {
  readonly intervalMs: number
  /** The VM it looks at; undefined for a loop about none in particular. */
  readonly about: VmIdentity | undefined
  /** Name of a loop about none. */
  readonly service: string
  readonly until: readonly AbortSignal[]
  /** The handler it was begun in. */
  readonly context: HandlerContext | undefined
}

/** The scan loops that go on at present, and the clients' requests for an extra turn of them. */
export class Scans {
  readonly #health: HealthState
  readonly #loops = new Map<Loop, VmIdentity | undefined>()
  /** Changes of findings by uuid of their VM: what a turn found is told to its VM's clients only. */
  readonly #changes = new Map<string, number>()

  constructor(health: HealthState) {
    this.#health = health
  }

  /** Counts what the loops found. */
  note(changes: readonly StoredChange[]): void {
    for (const { vm } of changes) this.#changes.set(vm, (this.#changes.get(vm) ?? 0) + 1)
  }

  /** Begins a loop. */
  begin({ intervalMs, about, service, until, context }: ScanOptions): AsyncIterableIterator<Tick> {
    const loop = new Loop({
      intervalMs,
      label: about?.name ?? service,
      until,
      changes: () => this.#changesOf(about?.uuid),
      onTurn: () => context && this.#health.ok(context.source),
      onEnd: (ended) => {
        this.#loops.delete(ended)
      },
    })
    this.#loops.set(loop, about)
    context?.loops.add(loop)
    return loop
  }

  /** Asks for a turn of the loops in scope, of one VM if it is named. Undefined if none would answer. */
  run(scope: VmScope, vm: string | undefined): Run | undefined {
    const targets = [...this.#loops].filter(([, about]) => {
      // A loop about no VM in particular may look at everybody's.
      if (!about) return scope === 'all' && vm === undefined
      const uuid = about.uuid.toLowerCase()
      return inScope(scope, uuid) && (vm === undefined || vm === about.name || vm.toLowerCase() === uuid)
    })
    return targets.length > 0 ? new Run(targets.map(([loop]) => loop)) : undefined
  }

  #changesOf(uuid: string | undefined): number {
    if (uuid !== undefined) return this.#changes.get(uuid.toLowerCase()) ?? 0
    let sum = 0
    for (const count of this.#changes.values()) sum += count
    return sum
  }
}
