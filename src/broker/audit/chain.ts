import type { PublicKey } from '../../capabilities/keys.js'
import { isHead, isSigned } from './head.js'
import type { Line } from './lines.js'
import { decodeLine, NO_HASH } from './record.js'
import type { AuditHead, AuditRecord } from './types.js'

/** What is wrong with a log. */
export type AuditFaultKind =
  /** Bytes of the record are not those that were written. */
  | 'changed'
  /** Records are missing in the middle, or at the start. */
  | 'removed'
  /** A record stands where it was not written. */
  | 'reordered'
  /** A record that does not belong: one too many, or made up. */
  | 'inserted'
  /** Records at the end are missing that a signed head vouches for. */
  | 'cut'
  /** A head is missing where one was due, or is not signed by the broker, or vouches for another record. */
  | 'head'
  /** The head that was given is of another log or another broker. */
  | 'foreign'

export interface AuditFault {
  readonly kind: AuditFaultKind
  /** The record it is about (the first, if several). */
  readonly seq: number
  readonly file: string
  /** Line in the file, from 1. */
  readonly line: number
  /** Says it in words, the record named. */
  readonly message: string
}

const MAX_FAULTS = 16
/** Gaps remembered, to tell a record that moved from one that is gone. */
const MAX_GAPS = 64
/** Records a head may be late: the log writes it with the record that makes it due. */
const HEAD_SLACK = 2

interface Gap {
  readonly from: number
  readonly to: number
  readonly fault: number
}

/** Follows a chain of records and says where it breaks. One pass, bounded memory. */
export class ChainChecker {
  /** Identity of the log, from its first record. */
  log: string | undefined
  /** Highest sequence number so far. */
  seq = 0
  hash: string = NO_HASH
  records = 0
  heads = 0
  /** Sequence number of the last record a valid head of the log vouches for. */
  vouched = 0
  /** True if the last record but heads says that the log was closed. */
  closed = false
  readonly faults: AuditFault[] = []

  readonly #broker: PublicKey
  readonly #head: AuditHead | undefined
  readonly #gaps: Gap[] = []
  #headEvery = 0
  /** False after a changed record: its hash is not known, so the next record's `prev` says nothing. */
  #hashKnown = true
  #headSeen = false

  constructor(broker: PublicKey, head?: AuditHead) {
    this.#broker = broker
    this.#head = head
  }

  /** Starts at a head instead of at the beginning: what came before has been moved away. */
  startAfter(head: Pick<AuditHead, 'log' | 'seq' | 'hash'>): void {
    this.log = head.log
    this.seq = head.seq
    this.hash = head.hash
    this.vouched = head.seq
  }

  /** Takes the next line; the record if it is one. */
  take(file: string, line: Line): AuditRecord | undefined {
    const decoded = line.overlong ? ({ fault: 'malformed' } as const) : decodeLine(line.bytes)
    if ('fault' in decoded) {
      const what = decoded.fault === 'changed' ? 'has been changed' : 'is not as it was written'
      this.#fault('changed', this.seq + 1, file, line.number, `record ${this.seq + 1} ${what}`)
      this.seq++
      this.#hashKnown = false
      return undefined
    }
    const { record } = decoded
    if (this.#place(record, file, line.number)) this.#follow(record, file, line.number)
    return record
  }

  /** To be called at the end. */
  finish(file: string): void {
    const head = this.#head
    if (head === undefined) return
    if (!isSigned(head) || head.broker !== this.#broker) {
      this.#fault('foreign', head.seq, file, 0, 'the given head is not signed by this broker')
    } else if (this.log !== undefined && head.log !== this.log) {
      this.#fault('foreign', head.seq, file, 0, 'the given head is of another log')
    } else if (this.seq < head.seq) {
      const gone = `records ${this.seq + 1} to ${head.seq} are cut off the end`
      this.#fault('cut', this.seq + 1, file, 0, `${gone}: the broker signed that they were there`)
    } else if (!this.#headSeen) {
      this.#fault('head', head.seq, file, 0, `record ${head.seq} is not the one the given head was signed for`)
    }
  }

  /** Whether the record stands where it should; says so if not. */
  #place(record: AuditRecord, file: string, line: number): boolean {
    const expected = this.seq + 1
    if (record.seq > expected) {
      this.#gap(expected, record.seq - 1, file, line)
      return true
    }
    if (record.seq < expected) {
      this.#stray(record, file, line)
      return false
    }
    if (this.#hashKnown && record.prev !== this.hash) {
      const message = `record ${record.seq} does not follow the one before it: one of the two was replaced`
      this.#fault('changed', record.seq, file, line, message)
    }
    return true
  }

  #follow(record: AuditRecord, file: string, line: number): void {
    const { entry } = record
    this.seq = record.seq
    this.hash = record.hash
    this.#hashKnown = true
    this.records++
    if (this.#head !== undefined && record.seq === this.#head.seq) this.#headSeen = record.hash === this.#head.hash
    if (entry.action === 'log.open' || entry.action === 'log.segment') this.#opening(record)
    if (entry.action === 'log.head') this.#vouch(record, file, line)
    else this.closed = entry.action === 'log.close'
    if (this.#headEvery > 0 && this.seq - this.vouched > this.#headEvery + HEAD_SLACK) {
      const from = this.vouched + 1
      this.#fault('head', from, file, line, `no head is signed for the records from ${from}, though one was due`)
      this.vouched = this.seq
    }
  }

  #opening(record: AuditRecord): void {
    const { log, headEvery } = record.entry.details ?? {}
    if (this.log === undefined && typeof log === 'string') this.log = log
    if (typeof headEvery === 'number') this.#headEvery = headEvery
  }

  #vouch(record: AuditRecord, file: string, line: number): void {
    const head = { ...record.entry.details, broker: this.#broker }
    const good = isHead(head) && isSigned(head) && head.log === this.log && head.hash === record.prev
    if (good && head.seq === record.seq - 1) {
      this.heads++
      this.vouched = record.seq
    } else {
      this.#fault(
        'head',
        record.seq,
        file,
        line,
        `the head in record ${record.seq} is not signed for the record before it`,
      )
    }
  }

  #gap(from: number, to: number, file: string, line: number): void {
    const what = from === to ? `record ${from} is missing` : `records ${from} to ${to} are missing`
    const fault = this.#fault('removed', from, file, line, what)
    if (fault >= 0 && this.#gaps.length < MAX_GAPS) this.#gaps.push({ from, to, fault })
  }

  /** A record with a number that was passed already. */
  #stray(record: AuditRecord, file: string, line: number): void {
    const gap = this.#gaps.find(({ from, to }) => from <= record.seq && record.seq <= to)
    if (gap === undefined) {
      this.#fault('inserted', record.seq, file, line, `a record ${record.seq} stands here once more`)
      return
    }
    const message = `record ${record.seq} stands out of order, after record ${this.seq}`
    this.faults[gap.fault] = { kind: 'reordered', seq: record.seq, file, line, message }
  }

  #fault(kind: AuditFaultKind, seq: number, file: string, line: number, message: string): number {
    if (this.faults.length >= MAX_FAULTS) return -1
    return this.faults.push({ kind, seq, file, line, message }) - 1
  }
}
