import { RpcTarget } from 'capnweb'
import { CloudAppError } from '../../errors.js'
import type { PeerIdentity } from '../../transport/channel.js'
import { type AccessHook, scopeFor } from '../access.js'
import type { Findings } from '../findings.js'
import type { HealthState } from '../health.js'
import type { Run } from '../runs.js'
import type { FindingStore, VmScope } from '../store.js'
import { SEVERITIES, type StatusId, statusId } from '../vocabulary.js'
import { fitting, Watcher, wireFinding } from '../watcher.js'
import {
  type Description,
  type Health,
  INTERFACE_LIMITS,
  INTERFACE_VERSION,
  OLDEST_VERSION,
  type OpenAnswer,
  REQUESTS,
  type RunEvent,
  request,
  type WireFinding,
  type WireFindings,
  type WirePage,
  type WireRecord,
  type WireRoot,
  type WireRun,
  type WireService,
  type WireWatch,
} from './protocol.js'

/** What the interface is served from. */
export interface Backend {
  readonly store: FindingStore
  readonly findings: Findings
  readonly health: HealthState
  readonly access: AccessHook
  describe(): Description
  /** VMs watched at present. */
  vms(): readonly { readonly uuid: string; readonly name: string }[]
  /** Asks for a scan of the VMs in scope (of one of them, if named). Undefined if no loop would answer. */
  run(scope: VmScope, vm: string | undefined): Run | undefined
}

/** Everything one client holds of us; ended with its session. */
export class ClientState {
  readonly #watches = new Set<Watcher>()
  readonly #runs = new Set<Run>()

  constructor(
    readonly backend: Backend,
    readonly peer: PeerIdentity,
  ) {}

  /** What the peer may see now. A hook that fails shows nothing. */
  scope(): VmScope {
    try {
      return scopeFor(this.backend.access, this.peer)
    } catch (error) {
      this.backend.health.fail('access', error, 'unknown')
      return new Set()
    }
  }

  addWatch(watcher: Watcher): void {
    this.#watches.add(watcher)
  }

  addRun(run: Run): void {
    this.#runs.add(run)
  }

  dropWatch(watcher: Watcher): void {
    watcher.close()
    this.#watches.delete(watcher)
  }

  dropRun(run: Run): void {
    run.cancel()
    this.#runs.delete(run)
  }

  assertRoom(what: 'watches' | 'runs'): void {
    const limit = INTERFACE_LIMITS[what]
    const held = what === 'watches' ? this.#watches.size : this.#runs.size
    if (held < limit) return
    throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `A session has at most ${limit} ${what} at once`, {
      details: { limit },
    })
  }

  end(): void {
    for (const watcher of this.#watches) watcher.close()
    for (const run of this.#runs) run.cancel()
    this.#watches.clear()
    this.#runs.clear()
  }
}

/** What a client finds first. */
export class Root extends RpcTarget implements WireRoot {
  readonly #state: ClientState

  constructor(state: ClientState) {
    super()
    this.#state = state
  }

  async open(given: unknown): Promise<OpenAnswer> {
    const { version: newest } = request('open', REQUESTS.open, given)
    const version = Math.min(newest, INTERFACE_VERSION)
    if (version < OLDEST_VERSION) {
      throw new CloudAppError(
        'ERR_CLOUDAPP_UNSUPPORTED',
        `This service domain speaks versions from ${OLDEST_VERSION} on`,
      )
    }
    return { version, service: new Service(this.#state) }
  }
}

class Service extends RpcTarget implements WireService {
  readonly #state: ClientState
  readonly #findings: FindingsTarget

  constructor(state: ClientState) {
    super()
    this.#state = state
    this.#findings = new FindingsTarget(state)
  }

  get findings(): FindingsTarget {
    return this.#findings
  }

  async describe(): Promise<Description> {
    return this.#state.backend.describe()
  }

  async health(): Promise<Health> {
    return this.#state.backend.health.report(this.#state.scope(), this.#state.backend.vms())
  }

  async run(given: unknown = {}): Promise<WireRun> {
    const { vm } = request('run', REQUESTS.run, given)
    this.#state.assertRoom('runs')
    const run = this.#state.backend.run(this.#state.scope(), vm)
    // The same words for a VM that does not exist, one of another tenant, and one nobody scans.
    if (!run) throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', 'There is nothing to scan')
    this.#state.addRun(run)
    return new RunTargetWire(this.#state, run)
  }
}

class FindingsTarget extends RpcTarget implements WireFindings {
  readonly #state: ClientState

  constructor(state: ClientState) {
    super()
    this.#state = state
  }

  async list(given: unknown = {}): Promise<WirePage> {
    const { since, limit = 100, ...filter } = request('findings.list', REQUESTS.list, given)
    const { store } = this.#state.backend
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
    const change = this.#state.backend.store.get(uid, this.#state.scope())
    if (!change) throw notFound(uid)
    return wireFinding(this.#state.backend.store, change)
  }

  async acknowledge(given: unknown, note: unknown = {}): Promise<WireFinding> {
    const uid = request('findings.acknowledge', REQUESTS.uid, given)
    const { comment } = request('findings.acknowledge', REQUESTS.acknowledge, note)
    const { findings, store } = this.#state.backend
    const change = await findings.acknowledge(uid, this.#state.scope(), nameOf(this.#state.peer), comment)
    if (!change) throw notFound(uid)
    return wireFinding(store, change)
  }

  async watch(given: unknown = {}): Promise<WireWatch> {
    const { since, ...filter } = request('findings.watch', REQUESTS.watch, given)
    this.#state.assertRoom('watches')
    const { store, findings } = this.#state.backend
    const { minSeverity, statuses } = this.#query(filter)
    const scope = () => this.#state.scope()
    const after = since === undefined ? undefined : store.cursors.decode(since)
    const watcher = new Watcher(store, findings, { minSeverity, statuses, scope, vm: filter.vm }, after)
    this.#state.addWatch(watcher)
    return new WatchTarget(this.#state, watcher)
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
    const scope = this.#state.scope()
    return vm === undefined ? scope : this.#state.backend.store.vmsNamed(vm, scope)
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

class RunTargetWire extends RpcTarget implements WireRun {
  readonly #state: ClientState
  readonly #run: Run

  constructor(state: ClientState, run: Run) {
    super()
    this.#state = state
    this.#run = run
  }

  async next(given: unknown = {}): Promise<{ events: RunEvent[] }> {
    const { waitMs = INTERFACE_LIMITS.waitMs } = request('run.next', REQUESTS.runNext, given)
    return { events: await this.#run.next(waitMs) }
  }

  cancel(): void {
    this.#run.cancel()
  }

  /** Called when the client lets go of it. */
  [Symbol.dispose](): void {
    this.#state.dropRun(this.#run)
  }
}

function notFound(uid: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `There is no finding ${JSON.stringify(uid)}`)
}

function nameOf(peer: PeerIdentity): string {
  return peer.kind === 'memory' ? peer.name : peer.kind === 'unix' ? `uid ${peer.uid}` : peer.key
}
