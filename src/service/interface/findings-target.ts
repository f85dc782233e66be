import { RpcTarget } from 'capnweb'
import { CloudAppError } from '../../errors.js'
import type { VmScope } from '../scope.js'
import { SEVERITIES, type StatusId, statusId } from '../vocabulary.js'
import { fitting, Watcher, wireFinding } from '../watcher.js'
import type { Asker, ClientState } from './asker.js'
import {
  INTERFACE_LIMITS,
  REQUESTS,
  request,
  type WireFinding,
  type WireFindings,
  type WirePage,
  type WireRecord,
  type WireWatch,
} from './protocol.js'

/** `service.findings` of one asker. */
export class FindingsTarget extends RpcTarget implements WireFindings {
  readonly #asker: Asker

  constructor(asker: Asker) {
    super()
    this.#asker = asker
  }

  async list(given: unknown = {}): Promise<WirePage> {
    const { since, limit = 100, ...filter } = request('findings.list', REQUESTS.list, given)
    const { store } = this.#asker.backend
    const after = since === undefined ? 0 : store.cursors.decode(since)
    const query = { ...this.#query(filter), after }
    const found = store.list({ ...query, limit: limit + 1 })
    const { changes, cut } = fitting(found.slice(0, limit))
    const removed = since === undefined ? undefined : store.removedSince(query)
    const gap = removed && (removed.count > 0 || !removed.exact) ? removed : undefined
    // Where nothing new was found, the cursor stays: one that moved would tell of findings of others.
    const last = changes.at(-1)?.sequence ?? (gap && gap.last > after ? gap.last : undefined)
    const next = last === undefined ? since : store.cursors.encode(last)
    return {
      findings: changes.map((change) => wireFinding(store, change)),
      ...(next !== undefined && { next }),
      more: cut || found.length > limit,
      ...(gap && {
        gap: { count: gap.count, exact: gap.exact, cursor: store.cursors.encode(Math.max(gap.last, after)) },
      }),
    }
  }

  async get(given: unknown): Promise<WireFinding> {
    const uid = request('findings.get', REQUESTS.uid, given)
    const change = this.#asker.backend.store.get(uid, this.#asker.scope())
    if (!change) throw notFound(uid)
    return wireFinding(this.#asker.backend.store, change)
  }

  async acknowledge(given: unknown, note: unknown = {}): Promise<WireFinding> {
    const uid = request('findings.acknowledge', REQUESTS.uid, given)
    const { comment } = request('findings.acknowledge', REQUESTS.acknowledge, note)
    const { findings, store } = this.#asker.backend
    const change = await findings.acknowledge(uid, this.#asker.scope(), this.#asker.name, comment)
    if (!change) throw notFound(uid)
    return wireFinding(store, change)
  }

  async watch(given: unknown = {}): Promise<WireWatch> {
    const { since, ...filter } = request('findings.watch', REQUESTS.watch, given)
    this.#asker.state.assertRoom('watches')
    const { store, findings } = this.#asker.backend
    const { minSeverity, statuses } = this.#query(filter)
    const scope = () => this.#asker.scope()
    const after = since === undefined ? undefined : store.cursors.decode(since)
    const watcher = new Watcher(store, findings, { minSeverity, statuses, scope, vm: filter.vm }, after)
    this.#asker.state.addWatch(watcher)
    return new WatchTarget(this.#asker.state, watcher)
  }

  #query(filter: {
    minSeverity?: (typeof SEVERITIES)[number] | undefined
    status?: string[] | undefined
    vm?: string | undefined
  }) {
    return {
      scope: this.#scopeOf(filter.vm),
      minSeverity: filter.minSeverity === undefined ? 1 : SEVERITIES.indexOf(filter.minSeverity) + 1,
      statuses: (filter.status ?? []).map((s) => statusId(s as Parameters<typeof statusId>[0])) as StatusId[],
    }
  }

  #scopeOf(vm: string | undefined): VmScope {
    const scope = this.#asker.scope()
    return vm === undefined ? scope : this.#asker.backend.store.vmsNamed(vm, scope)
  }
}

class WatchTarget extends RpcTarget implements WireWatch {
  readonly #state: ClientState
  readonly #watcher: Watcher

  constructor(state: ClientState, watcher: Watcher) {
    super()
    this.#state = state
    this.#watcher = watcher
  }

  async next(given: unknown = {}): Promise<{ records: WireRecord[] }> {
    const { max = 64, waitMs = INTERFACE_LIMITS.waitMs } = request('watch.next', REQUESTS.next, given)
    return { records: await this.#watcher.next(max, waitMs) }
  }

  close(): void {
    this.#state.dropWatch(this.#watcher)
  }

  /** Called when the client lets go of it. */
  [Symbol.dispose](): void {
    this.close()
  }
}

function notFound(uid: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `There is no finding ${JSON.stringify(uid)}`)
}
