import { STATUSES, type StatusId } from '../vocabulary.js'
import type { StoreQuery } from './rows.js'
import type { SqliteFile } from './sqlite.js'

export const ALL_STATUSES: readonly StatusId[] = Object.values(STATUSES)

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
 * Sequences of the changes that match, lowest first: an ordered probe of a covering index for each (VM, status, severity),
 * so that a rare severity among a million findings, or a small tenant among large ones, costs no scan. Twice, since most
 * probes give little: first a few of each, which bounds the answer from above, then all up to that bound.
 */
export function matchingSequences(db: SqliteFile, query: StoreQuery): number[] {
  const { after, limit } = query
  const statuses = query.statuses.length > 0 ? query.statuses : ALL_STATUSES
  const severities = Array.from({ length: 7 - query.minSeverity }, (_, i) => query.minSeverity + i)
  const vms = query.scope === 'all' ? undefined : [...query.scope]
  const probes = (vms?.length ?? 1) * statuses.length * severities.length
  if (probes === 0) return []
  const probe = (upTo: number, each: number) => {
    const values = [JSON.stringify(statuses), JSON.stringify(severities), after, upTo, each, limit]
    const rows = vms ? db.all(PROBE_VMS, JSON.stringify(vms), ...values) : db.all(PROBE_ALL, ...values)
    return (rows as { sequence: number }[]).map((row) => row.sequence)
  }
  const few = Math.min(limit, Math.ceil(limit / probes) + 4)
  const first = probe(Number.MAX_SAFE_INTEGER, few)
  if (few === limit) return first
  return probe(first.length < limit ? Number.MAX_SAFE_INTEGER : (first.at(-1) as number), limit)
}
