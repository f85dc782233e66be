import { randomBytes } from 'node:crypto'
import type { KeyPair } from '../../capabilities/keys.js'
import { isoTime } from '../../capabilities/time.js'
import { CloudAppError } from '../../errors.js'
import type { LiveFile } from './file.js'
import { signHead } from './head.js'
import { decodeLine, encodeRecord } from './record.js'
import type { Recovered } from './recover.js'
import type { Reserve } from './reserve.js'
import type { AuditEntry, AuditHead, AuditReceipt } from './types.js'

/** A record that shall be written. */
export interface Wanted {
  readonly entry: AuditEntry | 'head'
  readonly reserved: boolean
}

export type Outcome = AuditReceipt | CloudAppError

interface ChainState {
  readonly seq: number
  readonly hash: string
  /** The last record a head in the log vouches for. */
  readonly vouched: number
}

interface Batch {
  readonly lines: Buffer
  readonly receipts: AuditReceipt[]
  readonly heads: AuditHead[]
  readonly end: ChainState
}

/**
 * Turns records into chained lines and brings them to the live file or, on a full disk, to the reserve. Numbers and hashes
 * are given when a record is written and not before, so that one that can not be written leaves no gap.
 */
export class ChainWriter {
  readonly file: LiveFile
  readonly log: string
  readonly #reserve: Reserve
  readonly #key: KeyPair
  readonly #now: () => number
  readonly #headEvery: number
  #state: ChainState
  /** Last record in the live file; those after it are in the reserve. */
  #fileSeq: number
  /** Heads written and not yet handed out. */
  #heads: AuditHead[] = []

  constructor(
    parts: { file: LiveFile; reserve: Reserve; key: KeyPair; now: () => number; headEvery: number },
    found: Pick<Recovered, 'log' | 'seq' | 'hash' | 'vouched'>,
  ) {
    this.file = parts.file
    this.#reserve = parts.reserve
    this.#key = parts.key
    this.#now = parts.now
    this.#headEvery = parts.headEvery
    this.log = found.log ?? randomBytes(16).toString('hex')
    this.#state = { seq: found.seq, hash: found.hash, vouched: found.vouched }
    this.#fileSeq = found.seq
    this.#adopt()
  }

  get seq(): number {
    return this.#state.seq
  }

  /** Records no head in the log vouches for yet. */
  get unvouched(): number {
    return this.#state.seq - this.#state.vouched
  }

  /** Records wait in the reserve for room in the live file. */
  get reserveInUse(): boolean {
    return this.#reserve.used > 0
  }

  /** A head over the last record, outside the log. */
  sign(): AuditHead {
    return this.#signAt(this.#state)
  }

  /** Heads written since the last call. */
  takeHeads(): AuditHead[] {
    const heads = this.#heads
    this.#heads = []
    return heads
  }

  /** Writes the records, in order; an outcome for each. What is refused has left nothing behind. */
  write(wanted: readonly Wanted[]): Outcome[] {
    const failure = this.#drain() ?? this.#writeLive(wanted)
    if (Array.isArray(failure)) return failure
    return this.#writeReserved(wanted, failure)
  }

  close(): void {
    this.file.close()
    this.#reserve.close()
  }

  #writeLive(wanted: readonly Wanted[]): AuditReceipt[] | CloudAppError {
    const batch = this.#encode(wanted)
    const failure = this.#toFile(batch.lines)
    if (failure !== undefined) return failure
    this.#accept(batch)
    this.#fileSeq = this.#state.seq
    return batch.receipts
  }

  #writeReserved(wanted: readonly Wanted[], failure: CloudAppError): Outcome[] {
    return wanted.map((one) => {
      if (!one.reserved) return failure
      const batch = this.#encode([one])
      if (!this.#reserve.add(batch.lines)) return failure
      this.#accept(batch)
      return batch.receipts[0] as AuditReceipt
    })
  }

  /** Moves what is in the reserve to the live file; the failure if there is still no room. */
  #drain(): CloudAppError | undefined {
    if (this.#reserve.used === 0) return undefined
    const lines = linesOf(this.#reserve.lines()).filter(({ seq }) => seq > this.#fileSeq)
    const failure = this.#toFile(Buffer.concat(lines.map(({ bytes }) => bytes)))
    if (failure !== undefined) return failure
    this.file.syncNow()
    this.#reserve.clear()
    this.#fileSeq = this.#state.seq
    return undefined
  }

  /** Takes over what the last run left in the reserve. */
  #adopt(): void {
    for (const { bytes, seq } of linesOf(this.#reserve.lines())) {
      if (seq <= this.#state.seq) continue
      const decoded = decodeLine(bytes.subarray(0, -1))
      if (!('record' in decoded) || seq !== this.#state.seq + 1 || decoded.record.prev !== this.#state.hash) {
        throw new CloudAppError(
          'ERR_CLOUDAPP_AUDIT',
          `the reserve of the audit log has been tampered with at record ${seq}`,
        )
      }
      const { hash, entry } = decoded.record
      this.#state = { seq, hash, vouched: entry.action === 'log.head' ? seq : this.#state.vouched }
    }
  }

  #toFile(lines: Buffer): CloudAppError | undefined {
    try {
      this.file.add(lines)
      return undefined
    } catch (cause) {
      if (CloudAppError.is(cause)) return cause
      const { code, message } = cause as NodeJS.ErrnoException
      return new CloudAppError('ERR_CLOUDAPP_AUDIT', `the audit log can not be written (${code ?? message})`, { cause })
    }
  }

  #accept(batch: Batch): void {
    this.#state = batch.end
    this.#heads.push(...batch.heads)
  }

  #encode(wanted: readonly Wanted[]): Batch {
    const time = isoTime(this.#now())
    const mono = process.hrtime.bigint()
    const lines: string[] = []
    const receipts: AuditReceipt[] = []
    const heads: AuditHead[] = []
    let state = this.#state
    const add = (entry: AuditEntry, vouches: boolean) => {
      const seq = state.seq + 1
      const { line, hash } = encodeRecord(seq, state.hash, time, mono, entry)
      lines.push(line)
      state = { seq, hash, vouched: vouches ? seq : state.vouched }
    }
    const addHead = () => {
      const head = this.#signAt(state)
      heads.push(head)
      const { broker: _, ...details } = head
      add({ action: 'log.head', outcome: 'allowed', details }, true)
    }
    for (const { entry } of wanted) {
      if (entry === 'head') addHead()
      else add(entry, false)
      receipts.push({ seq: state.seq, hash: state.hash })
      if (state.seq - state.vouched >= this.#headEvery) addHead()
    }
    return { lines: Buffer.from(lines.join('')), receipts, heads, end: state }
  }

  #signAt({ seq, hash }: ChainState): AuditHead {
    return signHead(this.#key, { log: this.log, seq, hash, time: this.#now() })
  }
}

/** Whole lines with their sequence numbers. @throws CloudAppError `ERR_CLOUDAPP_AUDIT` */
function linesOf(bytes: Buffer): { bytes: Buffer; seq: number }[] {
  const out: { bytes: Buffer; seq: number }[] = []
  let start = 0
  for (let end = bytes.indexOf(0x0a); end >= 0; end = bytes.indexOf(0x0a, start)) {
    const line = bytes.subarray(start, end + 1)
    const decoded = decodeLine(line.subarray(0, -1))
    if (!('record' in decoded)) {
      throw new CloudAppError('ERR_CLOUDAPP_AUDIT', 'the reserve of the audit log holds something that is no record')
    }
    out.push({ bytes: line, seq: decoded.record.seq })
    start = end + 1
  }
  return out
}
