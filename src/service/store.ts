import { randomBytes } from 'node:crypto'
import { CursorCodec } from './cursor.js'
import type { FindingDraft } from './draft.js'
import { type FindingState, findingEvent, reviseEvent } from './finding-event.js'
import type { DetectionFinding, OcsfProduct } from './ocsf/types.js'
import { SqliteFile } from './sqlite.js'
import { ALL_STATUSES, matchingSequences } from './store-list.js'
import type { ChangeKind, SeverityId, StatusId } from './vocabulary.js'

/** Which VMs' findings: all, or those with these uuids (lower case). */
export type VmScope = 'all' | ReadonlySet<string>

/** One thing to do to the findings; see {@link FindingStore.apply}. */
export type Operation =
  | { readonly kind: 'raise'; readonly draft: FindingDraft }
  | {
      readonly kind: 'close'
      readonly key: string
      readonly vm: string | undefined
      readonly detail: string | undefined
    }
  | {
      readonly kind: 'acknowledge'
      readonly uid: string
      readonly scope: VmScope
      readonly by: string
      readonly comment: string | undefined
    }

/** One change of one finding, as stored. */
export interface StoredChange {
  readonly sequence: number
  readonly uid: string
  /** uuid of the VM. */
  readonly vm: string
  readonly vmName: string
  readonly change: ChangeKind
  readonly severity: SeverityId
  readonly status: StatusId
  readonly count: number
  /** The OCSF event as JSON text. */
  readonly json: string
}

export interface StoreQuery {
  readonly scope: VmScope
  /** Change sequence after which to begin; findings are given by their newest change. */
  readonly after: number
  readonly minSeverity: number
  readonly statuses: readonly StatusId[]
  readonly limit: number
}

export interface StoreOptions {
  /** The file; its folder must exist. */
  readonly path: string
  /** Whose findings these are: `metadata.product` of each event. */
  readonly product: OcsfProduct
  /** Milliseconds since 1970; the system's clock by default. */
  readonly now?: () => number
}

interface Row {
  id: number
  sequence: number
  uid: string
  vm: string
  vm_name: string
  severity: SeverityId
  status: StatusId
  change: ChangeKind
  count: number
  first: number
  last: number
  revision: number
  acknowledged: string | null
  json: string
}

/** Names of VMs that are remembered, to write each once. */
const NAMES = 10_000

/**
 * Findings in one SQLite file (WAL, synchronous=FULL: what {@link apply} returned is on disk). One process holds the file:
 * a second opener gets ERR_CLOUDAPP_STORE. Synchronous; the caller batches.
 */
export class FindingStore {
  readonly cursors: CursorCodec
  readonly #db: SqliteFile
  readonly #product: OcsfProduct
  readonly #now: () => number
  /** Names of VMs as the table has them. */
  readonly #names = new Map<string, string>()
  #sequence: number
  #count: number

  private constructor(db: SqliteFile, options: StoreOptions) {
    this.#db = db
    this.#product = options.product
    this.#now = options.now ?? Date.now
    this.cursors = new CursorCodec(this.#secret())
    const row = this.#db.get('SELECT value FROM meta WHERE name = ?', 'sequence') as { value: number } | undefined
    this.#sequence = row?.value ?? 0
    this.#count = (this.#db.get('SELECT count(*) AS n FROM finding') as { n: number }).n
  }

  /**
   * Opens or makes the store. Throws ERR_CLOUDAPP_STORE if the file can not be opened, is damaged, is no store of findings,
   * was written by a newer version, or is held by another process.
   */
  static open(options: StoreOptions): FindingStore {
    return new FindingStore(SqliteFile.open(options.path), options)
  }

  /** Findings in the store. */
  get count(): number {
    return this.#count
  }

  /** Sequence of the newest change; 0 in an empty store. */
  get sequence(): number {
    return this.#sequence
  }

  /**
   * Does every operation in one transaction and returns the changes each made (a raise makes one, a close one for each
   * open finding of its key). Either all are durable when it returns, or it throws ERR_CLOUDAPP_STORE and none is done.
   */
  apply(operations: readonly Operation[]): StoredChange[][] {
    const before = this.#sequence
    const countBefore = this.#count
    return this.#db.transaction(
      () => {
        const changes = operations.map((operation) => this.#operate(operation))
        if (this.#sequence !== before) {
          this.#db.run('INSERT OR REPLACE INTO meta(name, value) VALUES(?, ?)', 'sequence', this.#sequence)
        }
        return changes
      },
      () => {
        this.#names.clear()
        this.#sequence = before
        this.#count = countBefore
      },
    )
  }

  /** At most `limit` findings whose newest change is after `after`, in the order of their newest changes. */
  list(query: StoreQuery): StoredChange[] {
    const sequences = matchingSequences(this.#db, query)
    return sequences.map((sequence) =>
      changeOf(this.#db.get('SELECT * FROM finding WHERE sequence = ?', sequence) as Row),
    )
  }

  /** One finding by uid, if it is in the scope. */
  get(uid: string, scope: VmScope): StoredChange | undefined {
    const row = this.#db.get('SELECT * FROM finding WHERE uid = ?', uid) as Row | undefined
    return row && inScope(scope, row.vm) ? changeOf(row) : undefined
  }

  /** The uuids in scope of VMs that have findings and bear this name or uuid. */
  vmsNamed(name: string, scope: VmScope): Set<string> {
    const rows = this.#db.all('SELECT uuid FROM vm WHERE uuid = ? OR name = ?', name.toLowerCase(), name)
    return new Set((rows as { uuid: string }[]).map((row) => row.uuid).filter((uuid) => inScope(scope, uuid)))
  }

  /**
   * Removes findings by age and count, oldest change first, at most `batch` in one call; each leaves a tombstone so that
   * {@link removedSince} stays exact. Returns how many it removed.
   */
  retain(limits: { maxAgeMs: number; maxCount: number; maxTombstones: number; batch: number }): number {
    const total = this.#count
    const cutoff = this.#now() - limits.maxAgeMs
    const oldest = this.#db.all(
      'SELECT id, sequence, vm, severity, status, time FROM finding ORDER BY sequence LIMIT ?',
      limits.batch,
    ) as (Row & { time: number })[]
    let kept = oldest.findIndex((row, index) => row.time >= cutoff && total - index <= limits.maxCount)
    if (kept < 0) kept = oldest.length
    if (kept === 0) return 0
    return this.#db.transaction(() => {
      for (const row of oldest.slice(0, kept)) {
        this.#db.run('DELETE FROM finding WHERE id = ?', row.id)
        this.#db.run(
          'INSERT INTO removed(sequence, vm, severity, status) VALUES(?, ?, ?, ?)',
          row.sequence,
          row.vm,
          row.severity,
          row.status,
        )
      }
      const tombstones = (this.#db.get('SELECT count(*) AS n FROM removed') as { n: number }).n
      if (tombstones > limits.maxTombstones) {
        const over = tombstones - limits.maxTombstones
        const last = this.#db.get('SELECT sequence FROM removed ORDER BY sequence LIMIT 1 OFFSET ?', over - 1) as Row
        this.#db.run('DELETE FROM removed WHERE sequence <= ?', last.sequence)
        this.#db.run('INSERT OR REPLACE INTO meta(name, value) VALUES(?, ?)', 'forgotten', last.sequence)
      }
      this.#count = total - kept
      return kept
    })
  }

  /**
   * How many findings that match were removed with their newest change after `after`, and the last of those changes.
   * `exact` is false if `after` is so old that tombstones were dropped too: then it is at least that many.
   */
  removedSince(query: Omit<StoreQuery, 'limit'>): { count: number; last: number; exact: boolean } {
    const uuids = query.scope === 'all' ? null : JSON.stringify([...query.scope])
    const row = this.#db.get(
      `SELECT count(*) AS n, coalesce(max(sequence), 0) AS last FROM removed
        WHERE sequence > ? AND severity >= ? AND status IN (SELECT value FROM json_each(?))
          AND (? IS NULL OR vm IN (SELECT value FROM json_each(?)))`,
      query.after,
      query.minSeverity,
      JSON.stringify(query.statuses.length > 0 ? query.statuses : ALL_STATUSES),
      uuids,
      uuids,
    ) as { n: number; last: number }
    const floor = this.#db.get('SELECT value FROM meta WHERE name = ?', 'forgotten') as { value: number } | undefined
    return { count: row.n, last: row.last, exact: query.after >= (floor?.value ?? 0) }
  }

  /** Idempotent. */
  close(): void {
    this.#db.close()
  }

  #operate(operation: Operation): StoredChange[] {
    const now = this.#now()
    switch (operation.kind) {
      case 'raise':
        return [this.#raise(operation.draft, now)]
      case 'close': {
        const rows = this.#db.all(
          'SELECT * FROM finding WHERE key = ? AND status < 4 AND (? IS NULL OR vm = ?) LIMIT 4096',
          operation.key,
          operation.vm ?? null,
          operation.vm ?? null,
        ) as Row[]
        return rows.map((row) =>
          this.#change(row, undefined, {
            ...stateOf(row),
            change: 'close',
            status: 4,
            time: now,
            ...(operation.detail !== undefined && { detail: operation.detail }),
          }),
        )
      }
      case 'acknowledge': {
        const row = this.#db.get('SELECT * FROM finding WHERE uid = ?', operation.uid) as Row | undefined
        if (!row || !inScope(operation.scope, row.vm)) return []
        // Acknowledging again, or what is closed, changes nothing.
        if (row.status !== 1) return [changeOf(row)]
        const { by, comment } = operation
        const acknowledged = { at: now, by, ...(comment !== undefined && { comment }) }
        const state: FindingState = { ...stateOf(row), change: 'acknowledge', status: 2, time: now, acknowledged }
        return [this.#change(row, undefined, state)]
      }
    }
  }

  #raise(draft: FindingDraft, now: number): StoredChange {
    const { vm } = draft
    const row = this.#db.get('SELECT * FROM finding WHERE vm = ? AND key = ? AND status < 4', vm.uuid, draft.key) as
      | Row
      | undefined
    if (row) {
      const known = stateOf(row)
      return this.#change(row, draft, { ...known, change: 'update', count: known.count + 1, last: now, time: now })
    }
    this.#nameVm(vm.uuid, vm.name)
    const state: FindingState = {
      uid: timeOrderedUuid(now),
      change: 'create',
      status: 1,
      revision: 0,
      count: 1,
      first: now,
      last: now,
      time: now,
    }
    return this.#change(undefined, draft, state)
  }

  #nameVm(uuid: string, name: string): void {
    if (this.#names.get(uuid) === name) return
    this.#db.run('INSERT OR REPLACE INTO vm(uuid, name) VALUES(?, ?)', uuid, name)
    if (this.#names.size >= NAMES) this.#names.clear()
    this.#names.set(uuid, name)
  }

  /** Stores what a draft says, or (without one) that the state of the row has changed. */
  #change(row: Row | undefined, draft: FindingDraft | undefined, before: FindingState): StoredChange {
    const state = { ...before, revision: before.revision + 1 }
    const event = draft
      ? findingEvent(draft, state, this.#product)
      : reviseEvent(JSON.parse((row as Row).json) as DetectionFinding, state)
    const vm = draft?.vm ?? { uuid: (row as Row).vm, name: (row as Row).vm_name }
    const change: StoredChange = {
      sequence: ++this.#sequence,
      uid: state.uid,
      vm: vm.uuid,
      vmName: vm.name,
      change: state.change,
      severity: event.severity_id,
      status: state.status,
      count: state.count,
      json: JSON.stringify(event),
    }
    const values = [
      change.sequence,
      change.vmName,
      change.severity,
      state.status,
      state.change,
      state.count,
      state.first,
      state.last,
      state.time,
      state.revision,
      state.acknowledged ? JSON.stringify(state.acknowledged) : null,
      change.json,
    ]
    if (row) {
      this.#db.run(
        `UPDATE finding SET sequence = ?, vm_name = ?, severity = ?, status = ?, change = ?, count = ?, first = ?, last = ?,
          time = ?, revision = ?, acknowledged = ?, json = ? WHERE id = ?`,
        ...values,
        row.id,
      )
    } else {
      this.#db.run(
        `INSERT INTO finding(sequence, vm_name, severity, status, change, count, first, last, time, revision, acknowledged,
          json, uid, vm, key) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
        ...values,
        state.uid,
        change.vm,
        (draft as FindingDraft).key,
      )
      this.#count++
    }
    return change
  }

  #secret(): Uint8Array {
    const row = this.#db.get('SELECT value FROM meta WHERE name = ?', 'cursor-key') as { value: string } | undefined
    if (row) return Buffer.from(row.value, 'hex')
    const key = randomBytes(16)
    this.#db.run('INSERT INTO meta(name, value) VALUES(?, ?)', 'cursor-key', key.toString('hex'))
    return key
  }
}

/** UUID version 7 (RFC 9562, 5.7): its index grows at one end, where random ones would touch a page each. */
function timeOrderedUuid(now: number): string {
  const bytes = randomBytes(16)
  bytes.writeUIntBE(Math.max(0, now), 0, 6)
  bytes[6] = 0x70 | ((bytes[6] as number) & 0x0f)
  bytes[8] = 0x80 | ((bytes[8] as number) & 0x3f)
  const hex = bytes.toString('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}

export function inScope(scope: VmScope, vm: string): boolean {
  return scope === 'all' || scope.has(vm)
}

function stateOf(row: Row): FindingState {
  return {
    uid: row.uid,
    change: row.change,
    status: row.status,
    revision: row.revision,
    count: row.count,
    first: row.first,
    last: row.last,
    time: row.last,
    ...(row.acknowledged !== null && {
      acknowledged: JSON.parse(row.acknowledged) as NonNullable<FindingState['acknowledged']>,
    }),
  }
}

function changeOf(row: Row): StoredChange {
  const { sequence, uid, vm, change, severity, status, count, json } = row
  return { sequence, uid, vm, vmName: row.vm_name, change, severity, status, count, json }
}
