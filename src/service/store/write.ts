import { randomFillSync } from 'node:crypto'
import type { ArtifactRef } from '../artifacts/types.js'
import { FINDING_LIMITS } from '../bounds.js'
import type { FindingDraft } from '../draft.js'
import { type FindingState, findingEvent, reviseEvent } from '../finding-event.js'
import type { DetectionFinding, OcsfProduct } from '../ocsf/types.js'
import { inScope, type VmScope } from '../scope.js'
import { changeOf, type Row, type StoredChange, stateOf } from './rows.js'
import type { SqliteFile } from './sqlite.js'

/** One thing to do to the findings; see {@link FindingWriter.apply}. */
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

/** Names of VMs that are remembered, to write each once. */
const NAMES = 10_000

/** The side of a store that changes findings, a batch of operations in each transaction. */
export class FindingWriter {
  readonly #db: SqliteFile
  readonly #product: OcsfProduct
  readonly #now: () => number
  /** Names of VMs as the table has them. */
  readonly #names = new Map<string, string>()
  #sequence: number
  #count: number

  constructor(db: SqliteFile, product: OcsfProduct, now: () => number) {
    this.#db = db
    this.#product = product
    this.#now = now
    const row = db.get('SELECT value FROM meta WHERE name = ?', 'sequence') as { value: number } | undefined
    this.#sequence = row?.value ?? 0
    this.#count = (db.get('SELECT count(*) AS n FROM finding') as { n: number }).n
  }

  /** Findings in the store. */
  get count(): number {
    return this.#count
  }

  /** Sequence of the newest change; 0 in an empty store. */
  get sequence(): number {
    return this.#sequence
  }

  /** Notes that so many findings were removed. */
  removed(count: number): void {
    this.#count -= count
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

  /** The artifacts of a finding, those of the draft added; the newest replace the oldest past the bound. */
  #artifacts(uid: string, vm: string, draft: FindingDraft, at: number): readonly ArtifactRef[] {
    for (const { digest, name, type, bytes, truncated } of draft.artifacts ?? []) {
      this.#db.run(
        'INSERT OR REPLACE INTO artifact(finding, digest, vm, name, type, bytes, truncated, at) VALUES(?, ?, ?, ?, ?, ?, ?, ?)',
        ...[uid, digest, vm, name, type, bytes, truncated ? 1 : 0, at],
      )
    }
    const rows = this.#db.all(
      'SELECT digest, name, type, bytes, truncated FROM artifact WHERE finding = ? ORDER BY at DESC, digest',
      uid,
    ) as (Omit<ArtifactRef, 'truncated'> & { truncated: number })[]
    for (const { digest } of rows.slice(FINDING_LIMITS.artifacts)) {
      this.#db.run('DELETE FROM artifact WHERE finding = ? AND digest = ?', uid, digest)
    }
    return rows
      .slice(0, FINDING_LIMITS.artifacts)
      .map(({ truncated, ...ref }) => ({ ...ref, ...(truncated === 1 && { truncated: true }) }))
  }

  #nameVm(uuid: string, name: string): void {
    if (this.#names.get(uuid) === name) return
    this.#db.run('INSERT OR REPLACE INTO vm(uuid, name) VALUES(?, ?)', uuid, name)
    if (this.#names.size >= NAMES) this.#names.clear()
    this.#names.set(uuid, name)
  }

  /** Stores what a draft says, or (without one) that the state of the row has changed. */
  #change(row: Row | undefined, draft: FindingDraft | undefined, before: FindingState): StoredChange {
    // A finding just made has only its draft's.
    const may = draft && (row !== undefined || draft.artifacts !== undefined)
    const artifacts = may ? this.#artifacts(before.uid, draft.vm.uuid, draft, before.time) : []
    const state = { ...before, revision: before.revision + 1, ...(artifacts.length > 0 && { artifacts }) }
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
}

/** Random bytes by the page: one system call for each finding costs more than the rest of its name. */
const random = { bytes: Buffer.alloc(4096), used: 4096 }

/** UUID version 7 (RFC 9562, 5.7): its index grows at one end, where random ones would touch a page each. */
function timeOrderedUuid(now: number): string {
  if (random.used === random.bytes.length) {
    randomFillSync(random.bytes)
    random.used = 0
  }
  const bytes = random.bytes.subarray(random.used, random.used + 16)
  random.used += 16
  bytes.writeUIntBE(Math.max(0, now), 0, 6)
  bytes[6] = 0x70 | ((bytes[6] as number) & 0x0f)
  bytes[8] = 0x80 | ((bytes[8] as number) & 0x3f)
  const hex = bytes.toString('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}
