import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import { ArtifactFiles } from './artifacts/files.js'
import { checkArtifacts, keepArtifacts } from './artifacts/keep.js'
import { boundText, Cuts, FINDING_LIMITS } from './bounds.js'
import { type AboutVm, boundKey, draftFinding, type FindingDraft, type FindingInput, vmOf } from './draft.js'
import type { DetectionFinding } from './ocsf/types.js'
import type { VmScope } from './scope.js'
import type { StoredChange } from './store/rows.js'
import type { FindingStore } from './store/store.js'
import type { Operation } from './store/write.js'
import { type ChangeKind, type FindingStatus, type Severity, severityOf, statusOf } from './vocabulary.js'

/** Operations in one transaction: more would hold the event loop too long. */
const BATCH = 512
/** Operations that wait for the disk. */
const PENDING = 65_536

/** How long findings are kept. */
export interface RetentionLimits {
  readonly maxAgeMs: number
  readonly maxCount: number
  /** Removed findings that are remembered one by one, so that a gap can be counted exactly. */
  readonly maxTombstones: number
  /** Bytes of all artifacts together. */
  readonly maxArtifactBytes: number
}

/** A finding as `raise` and `close` answer. */
export interface RaisedFinding {
  readonly uid: string
  readonly change: ChangeKind
  readonly count: number
  readonly severity: Severity
  readonly status: FindingStatus
  /** The OCSF event of this change. */
  readonly finding: DetectionFinding
}

interface Pending {
  readonly operation: Operation
  resolve(changes: StoredChange[]): void
  reject(error: unknown): void
}

/**
 * The author's side of a store of findings: raise, close, list. Calls made in one turn of the event loop share one
 * transaction; each resolves when its change is on disk, and watchers are told after that.
 */
export class Findings {
  readonly artifacts: ArtifactFiles
  readonly #store: FindingStore
  readonly #retention: RetentionLimits
  readonly #listeners = new Set<(changes: readonly StoredChange[]) => void>()
  readonly #pending: Pending[] = []
  readonly #onError: (error: CloudAppError) => void
  #scheduled = false
  #sinceRetention = 0
  #timer: NodeJS.Timeout | undefined
  #closed: Promise<void> | undefined

  /** @param onError - Told of failures that no caller waits for (retention), and of those that one does. */
  constructor(store: FindingStore, retention: RetentionLimits, onError: (error: CloudAppError) => void) {
    this.#store = store
    this.#retention = retention
    this.#onError = onError
    this.artifacts = new ArtifactFiles(`${store.path}-artifacts`, store, retention.maxArtifactBytes)
    this.#timer = setInterval(() => this.#retain(), 60_000)
    this.#timer.unref()
    this.#retain()
  }

  /**
   * Raises a finding: creates it, or updates the open one about the same VM with the same key (count, last seen, newest
   * words and evidence). Resolves when it is durable, its artifacts first.
   *
   * Throws ERR_CLOUDAPP_INVALID_ARGUMENT or ERR_CLOUDAPP_UNKNOWN_OPTION on misuse, ERR_CLOUDAPP_STORE if it can not be
   * stored, ERR_CLOUDAPP_LIMIT if 65,536 changes wait for the disk, ERR_CLOUDAPP_CLOSED.
   */
  async raise(input: FindingInput): Promise<RaisedFinding> {
    const draft = draftFinding(input)
    if (input.artifacts === undefined || input.artifacts.length === 0) return this.#raise(draft)
    checkArtifacts(input.artifacts)
    const full = await keepArtifacts(this.artifacts, draft, input.artifacts, (error) => this.#report(error))
    try {
      return await this.#raise(full)
    } finally {
      // A closed store can not be asked who names them; it is swept when it is opened.
      if (!this.#closed) this.artifacts.settled((full.artifacts ?? []).map(({ digest }) => digest))
    }
  }

  /**
   * Closes the open findings with this key, of one VM (`about`) or of all. Resolves to those it closed. Raising the key
   * again makes a new finding. Throws as {@link raise} does.
   */
  async close(
    key: string,
    options: { readonly about?: AboutVm; readonly reason?: string } = {},
  ): Promise<RaisedFinding[]> {
    checkOptions('findings.close', options, ['about', 'reason'])
    if (typeof key !== 'string')
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'findings.close: key is a string')
    const changes = await this.#submit({
      kind: 'close',
      key: boundKey(key),
      vm: options.about && vmOf(options.about).uuid,
      detail: options.reason === undefined ? undefined : bounded(options.reason),
    })
    return changes.map(raised)
  }

  /** The open findings of a VM, or of all, newest change last; at most `limit` (1,000 by default). */
  list(options: { readonly about?: AboutVm; readonly limit?: number } = {}): DetectionFinding[] {
    checkOptions('findings.list', options, ['about', 'limit'])
    const scope: VmScope = options.about ? new Set([vmOf(options.about).uuid]) : 'all'
    const changes = this.#store.list({
      scope,
      after: 0,
      minSeverity: 1,
      statuses: [1, 2],
      limit: Math.min(options.limit ?? 1000, 10_000),
    })
    return changes.map((change) => JSON.parse(change.json) as DetectionFinding)
  }

  /** Marks a finding as seen by `by`. Undefined if there is none in the scope. */
  async acknowledge(uid: string, scope: VmScope, by: string, comment?: string): Promise<StoredChange | undefined> {
    const [change] = await this.#submit({
      kind: 'acknowledge',
      uid,
      scope,
      by: bounded(by),
      comment: comment === undefined ? undefined : bounded(comment),
    })
    return change
  }

  /** Calls `listener` with the changes of each transaction, after it is durable. Returns the way to stop it. */
  subscribe(listener: (changes: readonly StoredChange[]) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Writes what waits, then closes the store. Idempotent. */
  shutdown(): Promise<void> {
    this.#closed ??= this.#finish()
    return this.#closed
  }

  async #finish(): Promise<void> {
    clearInterval(this.#timer)
    while (this.#pending.length > 0) this.#flush()
    this.#listeners.clear()
    this.#store.close()
  }

  async #raise(draft: FindingDraft): Promise<RaisedFinding> {
    const [change] = await this.#submit({ kind: 'raise', draft })
    return raised(change as StoredChange)
  }

  #submit(operation: Operation): Promise<StoredChange[]> {
    if (this.#closed) return Promise.reject(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The findings are closed'))
    if (this.#pending.length >= PENDING) {
      return Promise.reject(
        new CloudAppError('ERR_CLOUDAPP_LIMIT', `${PENDING} changes of findings wait for the disk`, {
          details: { limit: PENDING },
        }),
      )
    }
    return new Promise((resolve, reject) => {
      this.#pending.push({ operation, resolve, reject })
      this.#schedule()
    })
  }

  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      this.#flush()
      if (this.#pending.length > 0) this.#schedule()
    })
  }

  #flush(): void {
    const batch = this.#pending.splice(0, BATCH)
    if (batch.length === 0) return
    let changes: StoredChange[][]
    try {
      changes = this.#store.apply(batch.map((item) => item.operation))
    } catch (error) {
      // One operation that can not be done must not fail those that share its transaction.
      if (batch.length > 1 && !CloudAppError.is(error, 'ERR_CLOUDAPP_STORE')) this.#alone(batch)
      else {
        for (const item of batch) item.reject(error)
        this.#report(error)
      }
      return
    }
    this.#deliver(batch, changes)
  }

  #alone(batch: readonly Pending[]): void {
    for (const item of batch) {
      try {
        this.#deliver([item], this.#store.apply([item.operation]))
      } catch (error) {
        item.reject(error)
      }
    }
  }

  #deliver(batch: readonly Pending[], changes: readonly StoredChange[][]): void {
    for (const [index, item] of batch.entries()) item.resolve(changes[index] ?? [])
    const flat = changes.flat()
    if (flat.length > 0) for (const listener of this.#listeners) listener(flat)
    this.#sinceRetention += flat.length
    if (this.#sinceRetention >= 1000) this.#retain()
  }

  #retain(): void {
    this.#sinceRetention = 0
    try {
      const { removed, artifacts } = this.#store.retain({ ...this.#retention, batch: 2000 })
      this.artifacts.drop(artifacts)
      if (removed === 2000) setImmediate(() => this.#closed ?? this.#retain())
    } catch (error) {
      this.#report(error)
    }
  }

  #report(error: unknown): void {
    this.#onError(
      CloudAppError.is(error) ? error : new CloudAppError('ERR_CLOUDAPP_STORE', String(error), { cause: error }),
    )
  }
}

function raised(change: StoredChange): RaisedFinding {
  let event: DetectionFinding | undefined
  return {
    uid: change.uid,
    change: change.change,
    count: change.count,
    severity: severityOf(change.severity),
    status: statusOf(change.status),
    // Parsed only for who looks at it.
    get finding() {
      event ??= JSON.parse(change.json) as DetectionFinding
      return event
    },
  }
}

function bounded(text: string): string {
  return boundText(String(text), FINDING_LIMITS.comment, 'text', new Cuts())
}
