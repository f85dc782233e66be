import { randomBytes, randomUUID } from 'node:crypto'
import { createRequire } from 'node:module'
import type Database from 'libsql'
import { CloudAppError } from '../errors.js'
import { CursorCodec } from './cursor.js'
import type { FindingDraft } from './draft.js'
import { type FindingState, findingEvent, reviseEvent } from './finding-event.js'
import type { DetectionFinding, OcsfProduct } from './ocsf/types.js'
import { SCHEMA, SCHEMA_VERSION, storeError } from './store-schema.js'
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

const ALL_STATUSES: readonly StatusId[] = [1, 2, 4]
/** Names of VMs that are remembered, to write each once. */
const NAMES = 10_000

const PROBE_VMS = `
  SELECT f.sequence FROM json_each(?) v CROSS JOIN json_each(?) s CROSS JOIN json_each(?) e CROSS JOIN finding f
    WHERE f.sequence IN (
      SELECT g.sequence FROM finding g INDEXED BY finding_by_vm
        WHERE g.vm = v.value AND g.status = s.value AND g.severity = e.value AND g.sequence > ? AND g.sequence <= ?
        ORDER BY g.sequence LIMIT ?)
    ORDER BY f.sequence LIMIT ?`
const PROBE_ALL = `
  SELECT f.sequence FROM json_each(?) s CROSS JOIN json_each(?) e CROSS JOIN finding f
    WHERE f.sequence IN (
      SELECT g.sequence FROM finding g INDEXED BY finding_by_severity
        WHERE g.status = s.value AND g.severity = e.value AND g.sequence > ? AND g.sequence <= ?
        ORDER BY g.sequence LIMIT ?)
    ORDER BY f.sequence LIMIT ?`

/**
 * Findings in one SQLite file (WAL, synchronous=FULL: what {@link apply} returned is on disk). One process holds the file:
 * a second opener gets ERR_CLOUDAPP_STORE. Synchronous; the caller batches.
 */
export class FindingStore {
  readonly cursors: CursorCodec
  readonly #db: Database.Database
  readonly #owner: Database.Database
  readonly #product: OcsfProduct
  readonly #now: () => number
  readonly #statements = new Map<string, Database.Statement>()
  /** Names of VMs as the table has them. */
  readonly #names = new Map<string, string>()
  #sequence: number
  #count: number
  #open = true

  private constructor(db: Database.Database, owner: Database.Database, options: StoreOptions) {
    this.#db = db
    this.#owner = owner
    this.#product = options.product
    this.#now = options.now ?? Date.now
    this.cursors = new CursorCodec(this.#secret())
    const row = this.#get('SELECT value FROM meta WHERE name = ?', 'sequence') as { value: number } | undefined
    this.#sequence = row?.value ?? 0
    this.#count = (this.#get('SELECT count(*) AS n FROM finding') as { n: number }).n
  }

  /**
   * Opens or makes the store. Throws ERR_CLOUDAPP_STORE if the file can not be opened, is damaged, is no store of findings,
   * was written by a newer version, or is held by another process.
   */
  static open(options: StoreOptions): FindingStore {
    let db: Database.Database | undefined
    let owner: Database.Database | undefined
    try {
      // One owner at a time, by a transaction in a file beside the store that the kernel ends with the process. Not SQLite's
      // exclusive mode on the store itself: the binding lets that lock go only when its statements are collected. Waiting
      // would block the event loop, and another owner does not let go before it ends.
      const Sqlite = loadSqlite()
      owner = new Sqlite(`${options.path}-owner`, { timeout: 0 } as Database.Options)
      owner.exec('BEGIN IMMEDIATE')
      db = new Sqlite(options.path, { timeout: 0 } as Database.Options)
      db.exec('PRAGMA journal_mode=WAL')
      db.exec('PRAGMA synchronous=FULL')
      db.exec('PRAGMA cache_size=-32768')
      db.exec('PRAGMA journal_size_limit=67108864')
      const version = (db.prepare('PRAGMA user_version').all()[0] as { user_version: number }).user_version
      if (version > SCHEMA_VERSION) {
        throw new CloudAppError(
          'ERR_CLOUDAPP_STORE',
          `${options.path} is of version ${version}; this is ${SCHEMA_VERSION}`,
        )
      }
      db.exec('BEGIN IMMEDIATE')
      db.exec(SCHEMA)
      db.exec('COMMIT')
      return new FindingStore(db, owner, options)
    } catch (error) {
      db?.close()
      if (owner?.inTransaction) owner.exec('ROLLBACK')
      owner?.close()
      throw storeError(error, `The store of findings ${options.path} can not be opened`, options.path)
    }
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
    return this.#transaction(
      () => {
        const changes = operations.map((operation) => this.#operate(operation))
        if (this.#sequence !== before) {
          this.#run('INSERT OR REPLACE INTO meta(name, value) VALUES(?, ?)', 'sequence', this.#sequence)
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
    const sequences = this.#sequences(query)
    return sequences.map((sequence) => changeOf(this.#get('SELECT * FROM finding WHERE sequence = ?', sequence) as Row))
  }

  /** One finding by uid, if it is in the scope. */
  get(uid: string, scope: VmScope): StoredChange | undefined {
    const row = this.#get('SELECT * FROM finding WHERE uid = ?', uid) as Row | undefined
    return row && inScope(scope, row.vm) ? changeOf(row) : undefined
  }

  /** The uuids in scope of VMs that have findings and bear this name or uuid. */
  vmsNamed(name: string, scope: VmScope): Set<string> {
    const rows = this.#all('SELECT uuid FROM vm WHERE uuid = ? OR name = ?', name.toLowerCase(), name)
    return new Set((rows as { uuid: string }[]).map((row) => row.uuid).filter((uuid) => inScope(scope, uuid)))
  }

  /**
   * Removes findings by age and count, oldest change first, at most `batch` in one call; each leaves a tombstone so that
   * {@link removedSince} stays exact. Returns how many it removed.
   */
  retain(limits: { maxAgeMs: number; maxCount: number; maxTombstones: number; batch: number }): number {
    const total = this.#count
    const cutoff = this.#now() - limits.maxAgeMs
    const oldest = this.#all(
      'SELECT id, sequence, vm, severity, status, time FROM finding ORDER BY sequence LIMIT ?',
      limits.batch,
    ) as (Row & { time: number })[]
    let kept = oldest.findIndex((row, index) => row.time >= cutoff && total - index <= limits.maxCount)
    if (kept < 0) kept = oldest.length
    if (kept === 0) return 0
    return this.#transaction(() => {
      for (const row of oldest.slice(0, kept)) {
        this.#run('DELETE FROM finding WHERE id = ?', row.id)
        this.#run(
          'INSERT INTO removed(sequence, vm, severity, status) VALUES(?, ?, ?, ?)',
          row.sequence,
          row.vm,
          row.severity,
          row.status,
        )
      }
      const tombstones = (this.#get('SELECT count(*) AS n FROM removed') as { n: number }).n
      if (tombstones > limits.maxTombstones) {
        const over = tombstones - limits.maxTombstones
        const last = this.#get('SELECT sequence FROM removed ORDER BY sequence LIMIT 1 OFFSET ?', over - 1) as Row
        this.#run('DELETE FROM removed WHERE sequence <= ?', last.sequence)
        this.#run('INSERT OR REPLACE INTO meta(name, value) VALUES(?, ?)', 'forgotten', last.sequence)
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
    const row = this.#get(
      `SELECT count(*) AS n, coalesce(max(sequence), 0) AS last FROM removed
        WHERE sequence > ? AND severity >= ? AND status IN (SELECT value FROM json_each(?))
          AND (? IS NULL OR vm IN (SELECT value FROM json_each(?)))`,
      query.after,
      query.minSeverity,
      JSON.stringify(query.statuses.length > 0 ? query.statuses : ALL_STATUSES),
      uuids,
      uuids,
    ) as { n: number; last: number }
    const floor = this.#get('SELECT value FROM meta WHERE name = ?', 'forgotten') as { value: number } | undefined
    return { count: row.n, last: row.last, exact: query.after >= (floor?.value ?? 0) }
  }

  /** Idempotent. */
  close(): void {
    if (!this.#open) return
    this.#open = false
    this.#statements.clear()
    // The binding frees the connection only when its statements are collected: leave no log behind for that long.
    this.#db.prepare('PRAGMA wal_checkpoint(TRUNCATE)').all()
    this.#db.close()
    this.#owner.exec('ROLLBACK')
    this.#owner.close()
  }

  #operate(operation: Operation): StoredChange[] {
    const now = this.#now()
    switch (operation.kind) {
      case 'raise':
        return [this.#raise(operation.draft, now)]
      case 'close': {
        const rows = this.#all(
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
        const row = this.#get('SELECT * FROM finding WHERE uid = ?', operation.uid) as Row | undefined
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
    const row = this.#get('SELECT * FROM finding WHERE vm = ? AND key = ? AND status < 4', vm.uuid, draft.key) as
      | Row
      | undefined
    if (row) {
      const known = stateOf(row)
      return this.#change(row, draft, { ...known, change: 'update', count: known.count + 1, last: now, time: now })
    }
    this.#nameVm(vm.uuid, vm.name)
    const state: FindingState = {
      uid: randomUUID(),
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
    this.#run('INSERT OR REPLACE INTO vm(uuid, name) VALUES(?, ?)', uuid, name)
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
      this.#run(
        `UPDATE finding SET sequence = ?, vm_name = ?, severity = ?, status = ?, change = ?, count = ?, first = ?, last = ?,
          time = ?, revision = ?, acknowledged = ?, json = ? WHERE id = ?`,
        ...values,
        row.id,
      )
    } else {
      this.#run(
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

  // The newest changes that match, lowest first: an ordered probe of a covering index for each (VM, status, severity), so
  // that a rare severity among a million findings, or a small tenant among large ones, costs no scan. Twice, since most
  // probes give little: first a few of each, which bounds the answer from above, then all up to that bound.
  #sequences(query: StoreQuery): number[] {
    const { after, limit } = query
    const statuses = query.statuses.length > 0 ? query.statuses : ALL_STATUSES
    const severities = Array.from({ length: 7 - query.minSeverity }, (_, i) => query.minSeverity + i)
    const vms = query.scope === 'all' ? undefined : [...query.scope]
    const probes = (vms?.length ?? 1) * statuses.length * severities.length
    if (probes === 0) return []
    const probe = (upTo: number, each: number) => {
      const values = [JSON.stringify(statuses), JSON.stringify(severities), after, upTo, each, limit]
      const rows = vms ? this.#all(PROBE_VMS, JSON.stringify(vms), ...values) : this.#all(PROBE_ALL, ...values)
      return (rows as { sequence: number }[]).map((row) => row.sequence)
    }
    const few = Math.min(limit, Math.ceil(limit / probes) + 4)
    const first = probe(Number.MAX_SAFE_INTEGER, few)
    if (few === limit) return first
    return probe(first.length < limit ? Number.MAX_SAFE_INTEGER : (first.at(-1) as number), limit)
  }

  #secret(): Uint8Array {
    const row = this.#get('SELECT value FROM meta WHERE name = ?', 'cursor-key') as { value: string } | undefined
    if (row) return Buffer.from(row.value, 'hex')
    const key = randomBytes(16)
    this.#run('INSERT INTO meta(name, value) VALUES(?, ?)', 'cursor-key', key.toString('hex'))
    return key
  }

  #transaction<T>(work: () => T, undo?: () => void): T {
    this.#assertOpen()
    try {
      this.#db.exec('BEGIN IMMEDIATE')
      const result = work()
      this.#db.exec('COMMIT')
      return result
    } catch (error) {
      undo?.()
      if (this.#db.inTransaction) this.#db.exec('ROLLBACK')
      throw storeError(error, 'The store of findings can not be written')
    }
  }

  #prepare(sql: string): Database.Statement {
    this.#assertOpen()
    let statement = this.#statements.get(sql)
    if (!statement) {
      statement = this.#db.prepare(sql)
      this.#statements.set(sql, statement)
    }
    return statement
  }

  #get(sql: string, ...values: unknown[]): unknown {
    // Not the binding's get(): it leaves the statement, and its read transaction, open until it is collected.
    return this.#all(sql, ...values)[0]
  }

  #all(sql: string, ...values: unknown[]): unknown[] {
    return guarded(() => this.#prepare(sql).all(...values))
  }

  #run(sql: string, ...values: unknown[]): void {
    guarded(() => this.#prepare(sql).run(...values))
  }

  #assertOpen(): void {
    // The binding goes on answering after close().
    if (!this.#open) throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The store of findings is closed')
  }
}

/** Loaded with the first store: a client, or a tool that needs no store, loads no native code. */
function loadSqlite(): typeof Database {
  try {
    return createRequire(import.meta.url)('libsql') as typeof Database
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_NATIVE', 'The package libsql (SQLite) can not be loaded on this machine', {
      cause,
    })
  }
}

export function inScope(scope: VmScope, vm: string): boolean {
  return scope === 'all' || scope.has(vm)
}

function guarded<T>(work: () => T): T {
  try {
    return work()
  } catch (error) {
    throw storeError(error, 'The store of findings failed')
  }
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
