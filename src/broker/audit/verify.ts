import { stat } from 'node:fs/promises'
import type { PublicKey } from '../../capabilities/keys.js'
import { checkOptions } from '../../options.js'
import { type AuditFault, ChainChecker } from './chain.js'
import { type Line, logFiles, readLines, reservePath } from './lines.js'
import { decodeLine } from './record.js'
import type { AuditHead, AuditRecord } from './types.js'

export interface VerifyAuditOptions {
  /** The key of the broker that writes the log. */
  readonly brokerKey: PublicKey
  /** A head the customer was handed: finds a cut tail, and a log rewritten from some record on. */
  readonly head?: AuditHead
  /** The head of the last record before the first that is here, where old segments have been moved away. */
  readonly after?: AuditHead
}

/** The outcome of {@link verifyAudit}. */
export interface AuditReport {
  /** True if no fault was found. */
  readonly ok: boolean
  /** At most 16, in the order found. */
  readonly faults: readonly AuditFault[]
  readonly log: string | undefined
  readonly records: number
  /** Sequence number and hash of the last record. */
  readonly seq: number
  readonly hash: string
  /** Signed heads in the log. */
  readonly heads: number
  /** Records after the last signed head: these the broker's key does not protect yet. */
  readonly unsigned: number
  /**
   * `closed`: the broker ended it. `open`: it is being written, or the broker was killed. `torn`: as open, and the last
   * line is not whole; it was never acknowledged (or, if it was, only a head the customer holds can tell) and goes when the
   * broker opens the log again.
   */
  readonly state: 'closed' | 'open' | 'torn'
}

/**
 * Checks a whole log, finished segments and reserve included: finds a changed byte, a removed, moved or added record and,
 * given a head, a cut tail. Reads it once; memory does not grow with the log.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND`, `ERR_CLOUDAPP_AUDIT` if it can not be read. Tampering is in the result.
 */
export async function verifyAudit(path: string, options: VerifyAuditOptions): Promise<AuditReport> {
  checkOptions('verifyAudit', options, ['brokerKey', 'head', 'after'])
  const checker = new ChainChecker(options.brokerKey, options.head)
  if (options.after !== undefined) checker.startAfter(options.after)
  const torn = await checkFiles(path, checker)
  checker.finish(path)
  const { faults, log, records, seq, hash, heads, vouched, closed } = checker
  const state = torn ? 'torn' : closed ? 'closed' : 'open'
  return { ok: faults.length === 0, faults, log, records, seq, hash, heads, unsigned: seq - vouched, state }
}

/** Feeds every line of a log; true if its end is torn. */
async function checkFiles(path: string, checker: ChainChecker): Promise<boolean> {
  let torn = false
  for (const file of await logFiles(path)) {
    for await (const line of readLines(file)) {
      // Only the live file can be torn: a finished segment ends with a newline.
      if (line.complete || file !== path || !isTorn(line)) checker.take(file, line)
      else torn = true
    }
  }
  const reserve = reservePath(path)
  if (!(await exists(reserve))) return torn
  for await (const line of readLines(reserve, { untilNul: true })) {
    if (!line.complete) continue
    const decoded = decodeLine(line.bytes)
    // What has been moved to the log already is still here if the broker was killed before it emptied the reserve.
    if ('record' in decoded && decoded.record.seq <= checker.seq) continue
    checker.take(reserve, line)
  }
  return torn
}

/**
 * True if an incomplete last line is what a crash leaves: the beginning of a record. A whole record whose newline was
 * replaced is not that.
 */
export function isTorn(line: Line): boolean {
  if (line.overlong) return false
  return (
    [line.bytes, line.bytes.subarray(0, -1)].every((bytes) => 'fault' in decodeLine(bytes)) && startsLikeARecord(line)
  )
}

function startsLikeARecord({ bytes }: Line): boolean {
  const start = bytes.toString('latin1', 0, 70)
  const form = `${'h'.repeat(64)} {"seq`
  return [...start].every((letter, i) => (form[i] === 'h' ? /[0-9a-f]/.test(letter) : letter === form[i]))
}

/**
 * The records of a log, oldest first, as they stand: nothing is checked but that each is a record. For `audit show`.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND`, `ERR_CLOUDAPP_AUDIT`
 */
export async function* readAudit(path: string): AsyncGenerator<AuditRecord> {
  let last = 0
  const files = (await logFiles(path)).map((file) => ({ file, untilNul: false }))
  const reserve = reservePath(path)
  if (await exists(reserve)) files.push({ file: reserve, untilNul: true })
  for (const { file, untilNul } of files) {
    for await (const line of readLines(file, { untilNul })) {
      const decoded = line.complete ? decodeLine(line.bytes) : undefined
      if (decoded === undefined || !('record' in decoded)) continue
      if (untilNul && decoded.record.seq <= last) continue
      last = decoded.record.seq
      yield decoded.record
    }
  }
}

async function exists(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined)) !== undefined
}
