import { stat } from 'node:fs/promises'
import type { PublicKey } from '../../capabilities/keys.js'
import { CloudAppError } from '../../errors.js'
import { ChainChecker } from './chain.js'
import { type Line, readLines, segmentIndexes, segmentPath } from './lines.js'
import { decodeLine, NO_HASH } from './record.js'
import { isTorn } from './verify.js'

/** Where a log goes on. */
export interface Recovered {
  readonly log: string | undefined
  readonly seq: number
  readonly hash: string
  /** Sequence number of the last record a head in the log vouches for; 0 if none does in the live file. */
  readonly vouched: number
  /** Bytes of the live file that are whole lines. */
  readonly size: number
  /** Bytes of a torn last line after them. */
  readonly torn: number
  /** The live file ends with a whole record that lacks only its newline. */
  readonly unended: boolean
}

/**
 * Reads the live file of a log to its end, checks its chain, and finds where to go on. Finished segments are not read but
 * for the last record of the last one; `verifyAudit` reads everything.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_AUDIT` if the file was tampered with: a broker does not write on after that.
 */
export async function recoverLog(path: string, brokerKey: PublicKey): Promise<Recovered> {
  const before = await lastOfSegments(path)
  const checker = new ChainChecker(brokerKey)
  const log = await logIdentity(path)
  if (before !== undefined) {
    checker.startAfter({ log: log ?? '', ...before })
    checker.vouched = before.vouched
  }
  const live = await checkLive(path, checker)
  const [fault] = checker.faults
  if (fault !== undefined) {
    const message = `the audit log ${path} has been tampered with: ${fault.message}; move it away for evidence to start a new one`
    throw new CloudAppError('ERR_CLOUDAPP_AUDIT', message, { details: { kind: fault.kind, seq: fault.seq } })
  }
  return { log: log ?? checker.log, seq: checker.seq, hash: checker.hash, vouched: checker.vouched, ...live }
}

async function checkLive(path: string, checker: ChainChecker): Promise<Pick<Recovered, 'size' | 'torn' | 'unended'>> {
  const found = await stat(path).catch(() => undefined)
  if (found === undefined) return { size: 0, torn: 0, unended: false }
  let last: Line | undefined
  for await (const line of readLines(path)) {
    if (!line.complete && isTorn(line)) return { size: line.offset, torn: found.size - line.offset, unended: false }
    checker.take(path, line)
    last = line
  }
  return { size: found.size, torn: 0, unended: last !== undefined && !last.complete }
}

async function logIdentity(path: string): Promise<string | undefined> {
  const [first] = await segmentIndexes(path)
  const file = first === undefined ? path : segmentPath(path, first)
  if ((await stat(file).catch(() => undefined)) === undefined) return undefined
  for await (const line of readLines(file)) {
    const decoded = decodeLine(line.bytes)
    const log = 'record' in decoded ? decoded.record.entry.details?.log : undefined
    return typeof log === 'string' ? log : undefined
  }
  return undefined
}

async function lastOfSegments(path: string): Promise<{ seq: number; hash: string; vouched: number } | undefined> {
  const last = (await segmentIndexes(path)).at(-1)
  if (last === undefined) return undefined
  let end = { seq: 0, hash: NO_HASH, vouched: 0 }
  for await (const line of readLines(segmentPath(path, last))) {
    const decoded = decodeLine(line.bytes)
    if (!('record' in decoded)) continue
    const { seq, hash, entry } = decoded.record
    end = { seq, hash, vouched: entry.action === 'log.head' ? seq : end.vouched }
  }
  return end
}
