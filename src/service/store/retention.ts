import { ALL_STATUSES } from './list.js'
import type { Row, StoreQuery } from './rows.js'
import type { SqliteFile } from './sqlite.js'

/** What {@link Retention.retain} keeps. */
export interface RetainLimits {
  readonly maxAgeMs: number
  readonly maxCount: number
  readonly maxTombstones: number
  /** At most so many findings in one call. */
  readonly batch: number
}

/** What of the store was removed, and when it must be: each finding leaves a tombstone, so that a gap can be counted. */
export class Retention {
  readonly #db: SqliteFile
  readonly #now: () => number
  #tombstones: number

  constructor(db: SqliteFile, now: () => number) {
    this.#db = db
    this.#now = now
    this.#tombstones = (db.get('SELECT count(*) AS n FROM removed') as { n: number }).n
  }

  /**
   * Removes findings by age and count, oldest change first. Returns how many it removed, and the digests of artifacts that
   * no finding names any more.
   *
   * @param total - Findings in the store.
   */
  retain(total: number, limits: RetainLimits): { readonly removed: number; readonly artifacts: readonly string[] } {
    const cutoff = this.#now() - limits.maxAgeMs
    const oldest = this.#db.all(
      'SELECT id, uid, sequence, vm, severity, status, time FROM finding ORDER BY sequence LIMIT ?',
      limits.batch,
    ) as (Row & { time: number })[]
    let kept = oldest.findIndex((row, index) => row.time >= cutoff && total - index <= limits.maxCount)
    if (kept < 0) kept = oldest.length
    if (kept === 0) return { removed: 0, artifacts: [] }
    const tombstones = this.#tombstones + kept
    const artifacts = this.#db.transaction(() => {
      const orphans: string[] = []
      for (const row of oldest.slice(0, kept)) {
        this.#db.run('DELETE FROM finding WHERE id = ?', row.id)
        this.#db.run(
          'INSERT INTO removed(sequence, vm, severity, status) VALUES(?, ?, ?, ?)',
          row.sequence,
          row.vm,
          row.severity,
          row.status,
        )
        orphans.push(...this.#dropArtifacts(row.uid))
      }
      if (tombstones > limits.maxTombstones) this.#forget(tombstones - limits.maxTombstones)
      return orphans
    })
    this.#tombstones = Math.min(tombstones, limits.maxTombstones)
    return { removed: kept, artifacts }
  }

  /**
   * How many findings that match were removed with their newest change after `after`, and the last of those changes.
   * `exact` is false if `after` is so old that tombstones were dropped too: then it is at least that many.
   */
  removedSince(query: Omit<StoreQuery, 'limit'>): { count: number; last: number; exact: boolean } {
    const { scope, after, minSeverity } = query
    const statuses = JSON.stringify(query.statuses.length > 0 ? query.statuses : ALL_STATUSES)
    const matches = 'sequence > ? AND severity >= ? AND status IN (SELECT value FROM json_each(?))'
    const row = (
      scope === 'all'
        ? this.#db.get(
            `SELECT count(*) AS n, coalesce(max(sequence), 0) AS last FROM removed WHERE ${matches}`,
            after,
            minSeverity,
            statuses,
          )
        : this.#db.get(
            `SELECT count(*) AS n, coalesce(max(sequence), 0) AS last FROM removed
              WHERE vm IN (SELECT value FROM json_each(?)) AND ${matches}`,
            JSON.stringify([...scope]),
            after,
            minSeverity,
            statuses,
          )
    ) as { n: number; last: number }
    const floor = this.#db.get('SELECT value FROM meta WHERE name = ?', 'forgotten') as { value: number } | undefined
    return { count: row.n, last: row.last, exact: after >= (floor?.value ?? 0) }
  }

  /** Sequence of the last change that was removed with its finding; 0 if none was. */
  lastRemoved(): number {
    const row = this.#db.get('SELECT max(sequence) AS last FROM removed') as { last: number | null } | undefined
    return row?.last ?? 0
  }

  #dropArtifacts(uid: string): string[] {
    const rows = this.#db.all('SELECT digest FROM artifact WHERE finding = ?', uid) as { digest: string }[]
    if (rows.length === 0) return []
    this.#db.run('DELETE FROM artifact WHERE finding = ?', uid)
    return rows
      .map(({ digest }) => digest)
      .filter((digest) => this.#db.get('SELECT 1 FROM artifact WHERE digest = ? LIMIT 1', digest) === undefined)
  }

  #forget(over: number): void {
    const last = this.#db.get('SELECT sequence FROM removed ORDER BY sequence LIMIT 1 OFFSET ?', over - 1) as Row
    this.#db.run('DELETE FROM removed WHERE sequence <= ?', last.sequence)
    this.#db.run('INSERT OR REPLACE INTO meta(name, value) VALUES(?, ?)', 'forgotten', last.sequence)
  }
}
