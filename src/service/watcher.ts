import { CloudAppError } from '../errors.js'
import type { Findings } from './findings.js'
import { INTERFACE_LIMITS, type WireFinding, type WireRecord } from './interface/protocol.js'
import { inScope, type VmScope } from './scope.js'
import type { StoredChange } from './store/rows.js'
import type { FindingStore } from './store/store.js'
import type { StatusId } from './vocabulary.js'

/** What a watcher wants to see. */
export interface WatchFilter {
  readonly minSeverity: number
  /** Empty: all. */
  readonly statuses: readonly StatusId[]
  /** Name or uuid of the only VM to watch. */
  readonly vm?: string | undefined
  /** Evaluated anew each time records are taken or fed, so that access that was taken away ends at once. */
  readonly scope: () => VmScope
}

/**
 * List-then-watch over one store. While it lists, it reads pages from the store and holds nothing; once it has caught up it
 * is fed as changes are made, through a queue with a bound. A consumer that falls behind that bound loses the oldest
 * records, and is told how many by a `gap` in their place.
 */
export class Watcher {
  readonly #store: FindingStore
  readonly #findings: Findings
  readonly #filter: WatchFilter
  #unsubscribe: (() => void) | undefined
  /** Sequence up to which everything was given, or stated as a gap. */
  #position: number
  #queue: StoredChange[] = []
  #queueBytes = 0
  #lost = 0
  #lostUpTo = 0
  #announceLive = false
  #wake: (() => void) | undefined
  #closed: CloudAppError | undefined

  /**
   * @param since - Sequence after which to begin; undefined: with what the store holds now, whatever was removed before.
   */
  constructor(store: FindingStore, findings: Findings, filter: WatchFilter, since: number | undefined) {
    this.#store = store
    this.#findings = findings
    this.#filter = filter
    this.#position = since ?? store.lastRemoved()
  }

  /** Records that are there, or the first to come within `waitMs`; at most `max` (and a gap and the `live` mark). */
  async next(max: number, waitMs: number): Promise<WireRecord[]> {
    if (this.#wake) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'A watch takes one next at a time')
    let records = this.#take(max)
    if (records.length > 0 || waitMs === 0) return records
    await this.#changed(waitMs)
    records = this.#take(max)
    return records
  }

  /** Idempotent; a waiting `next` ends with `reason`. */
  close(reason = new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The watch is closed')): void {
    if (this.#closed) return
    this.#closed = reason
    this.#unsubscribe?.()
    this.#queue = []
    this.#wake?.()
  }

  #take(max: number): WireRecord[] {
    if (this.#closed) throw this.#closed
    const records = this.#unsubscribe ? this.#live(max) : this.#stored(max)
    if (this.#announceLive) {
      this.#announceLive = false
      records.push({ type: 'live' })
    }
    return records
  }

  #stored(max: number): WireRecord[] {
    const { minSeverity, statuses, vm } = this.#filter
    const visible = this.#filter.scope()
    const scope = vm === undefined ? visible : this.#store.vmsNamed(vm, visible)
    const query = { scope, after: this.#position, minSeverity, statuses }
    const records: WireRecord[] = []
    const removed = this.#store.removedSince(query)
    if (removed.count > 0 || !removed.exact) {
      const cursor = this.#store.cursors.encode(Math.max(removed.last, this.#position))
      records.push({ type: 'gap', reason: 'retention', count: removed.count, exact: removed.exact, cursor })
    }
    const page = fitting(this.#store.list({ ...query, limit: max }))
    for (const change of page.changes) records.push({ type: 'finding', ...wireFinding(this.#store, change) })
    this.#position = Math.max(this.#position, removed.last, page.changes.at(-1)?.sequence ?? 0)
    if (page.changes.length < max && !page.cut) {
      // Nothing happens between the page and this line: no change is given twice or not at all.
      this.#unsubscribe = this.#findings.subscribe((changes) => this.#feed(changes))
      this.#announceLive = true
    }
    return records
  }

  #live(max: number): WireRecord[] {
    const records: WireRecord[] = []
    if (this.#lost > 0) {
      const cursor = this.#store.cursors.encode(this.#lostUpTo)
      records.push({ type: 'gap', reason: 'slow', count: this.#lost, exact: true, cursor })
      this.#lost = 0
    }
    const { changes } = fitting(this.#queue.slice(0, max))
    this.#queue.splice(0, changes.length)
    const scope = this.#filter.scope()
    for (const change of changes) {
      this.#queueBytes -= change.json.length
      if (inScope(scope, change.vm)) {
        records.push({ type: 'finding', ...wireFinding(this.#store, change) })
      }
    }
    return records
  }

  #feed(changes: readonly StoredChange[]): void {
    const scope = this.#filter.scope()
    const { minSeverity, statuses, vm } = this.#filter
    for (const change of changes) {
      if (change.severity < minSeverity || !inScope(scope, change.vm)) continue
      if (vm !== undefined && change.vm !== vm.toLowerCase() && change.vmName !== vm) continue
      if (statuses.length > 0 && !statuses.includes(change.status)) continue
      this.#queue.push(change)
      this.#queueBytes += change.json.length
    }
    let over = 0
    for (; over < this.#queue.length; over++) {
      const left = this.#queue.length - over
      if (left <= INTERFACE_LIMITS.queue && this.#queueBytes <= INTERFACE_LIMITS.queueBytes) break
      const change = this.#queue[over] as StoredChange
      this.#queueBytes -= change.json.length
      this.#lost++
      this.#lostUpTo = change.sequence
    }
    if (over > 0) this.#queue.splice(0, over)
    if (this.#queue.length > 0 || this.#lost > 0) this.#wake?.()
  }

  async #changed(waitMs: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    await new Promise<void>((resolve) => {
      timer = setTimeout(resolve, waitMs)
      this.#wake = resolve
    })
    clearTimeout(timer)
    this.#wake = undefined
  }
}

/** As it goes over the wire. */
export function wireFinding(store: FindingStore, change: StoredChange): WireFinding {
  return { cursor: store.cursors.encode(change.sequence), change: change.change, json: change.json }
}

/** As many from the front as one answer holds: always the first, and then up to the bound on JSON. */
export function fitting(changes: readonly StoredChange[]): { changes: readonly StoredChange[]; cut: boolean } {
  let bytes = 0
  for (const [index, change] of changes.entries()) {
    bytes += change.json.length
    if (index > 0 && bytes > INTERFACE_LIMITS.pageBytes) return { changes: changes.slice(0, index), cut: true }
  }
  return { changes, cut: false }
}
