import type { KeyPair } from '../../capabilities/keys.js'
import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import { type CounterOptions, OperationCounter } from './counter.js'
import { LiveFile } from './file.js'
import { type AuditQuota, QuotaKeeper } from './quota.js'
import { recoverLog } from './recover.js'
import { Reserve } from './reserve.js'
import type { AppendOptions, AuditEntry, AuditFsync, AuditHead, AuditReceipt } from './types.js'
import { ChainWriter, type Wanted } from './writer.js'

export interface AuditLogOptions {
  readonly path: string
  /** The broker's key: signs heads. */
  readonly key: KeyPair
  /** The broker's clock; the system's if absent. */
  readonly clock?: { now(): number }
  /** `always` if absent. */
  readonly fsync?: AuditFsync
  /** With `interval`: milliseconds from a record to its sync, at most. 1,000 if absent. */
  readonly intervalMs?: number
  /** A head is written with every so many-th record. 256 if absent. */
  readonly headEvery?: number
  /** A head is written so many milliseconds after a record at the latest. 1,000 if absent. */
  readonly headMs?: number
  /** A new segment is begun when the live file passes so many bytes. 64 MiB if absent. */
  readonly segmentBytes?: number
  /** Space set aside for reserved records. 256 KiB if absent. */
  readonly reserveBytes?: number
  /** Absent: no quota. */
  readonly quota?: AuditQuota
  /** Told every head that was written, when it is durable, to be handed to customers. */
  readonly onHead?: (head: AuditHead) => void
}

const KNOWN = [
  ...['path', 'key', 'clock', 'fsync', 'intervalMs', 'headEvery', 'headMs'],
  ...['segmentBytes', 'reserveBytes', 'quota', 'onHead'],
]

interface Waiting extends Wanted {
  resolve(receipt: AuditReceipt): void
  reject(error: CloudAppError): void
}

type Settings = Required<Omit<AuditLogOptions, 'quota' | 'onHead'>> & Pick<AuditLogOptions, 'quota' | 'onHead'>

/** Records written by one call at most. */
const BATCH = 1024

/**
 * An append-only, hash-chained log with signed heads. One process writes it at a time.
 *
 * Records that wait together are written by one call and share a sync. An append that resolves is as durable as
 * {@link AuditFsync} says; for one that rejects (`ERR_CLOUDAPP_AUDIT`) the caller must refuse the operation: it has left
 * nothing behind, or, where a sync failed, nobody knows, and the log takes nothing more. On a full disk only reserved
 * records still get through.
 */
export class AuditLog {
  readonly #settings: Settings
  readonly #writer: ChainWriter
  readonly #quota: QuotaKeeper | undefined
  #queue: Waiting[] = []
  #running: Promise<void> | undefined
  #unsynced = false
  #syncTimer: NodeJS.Timeout | undefined
  #headTimer: NodeJS.Timeout | undefined
  /** A failed sync leaves nobody knowing what is on the disk: nothing is written after it. */
  #broken: CloudAppError | undefined
  #failure: CloudAppError | undefined
  #closing: Promise<AuditHead> | undefined

  private constructor(settings: Settings, writer: ChainWriter) {
    this.#settings = settings
    this.#writer = writer
    this.#quota = settings.quota === undefined ? undefined : new QuotaKeeper(settings.quota, monotonicMs)
  }

  /**
   * Opens a log, or begins one. A last line that a crash tore off is cut off, and the log says so.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_AUDIT` if the log was tampered with or can not be written.
   */
  static async open(options: AuditLogOptions): Promise<AuditLog> {
    checkOptions('AuditLog.open', options, KNOWN)
    const settings: Settings = { ...DEFAULTS, ...options }
    const { path, key, clock, headEvery } = settings
    const found = await recoverLog(path, key.publicKey)
    const log = new AuditLog(settings, await openWriter(settings, found))
    const details = {
      log: log.id,
      broker: key.publicKey,
      fsync: settings.fsync,
      headEvery,
      tornBytes: found.torn,
      clockMs: clock.now(),
    }
    try {
      await log.#enqueue({ action: 'log.open', outcome: 'allowed', details }, true)
    } catch (error) {
      log.#writer.close()
      throw error
    }
    return log
  }

  /** Sequence number of the last record. */
  get seq(): number {
    return this.#writer.seq
  }

  /** Identity of the log: 32 hexadecimal digits. */
  get id(): string {
    return this.#writer.log
  }

  /** What keeps records from being written at this moment, if anything does. */
  get failure(): CloudAppError | undefined {
    return this.#broken ?? this.#failure
  }

  /**
   * Writes a record.
   *
   * @returns when it is as durable as the log's policy says
   * @throws CloudAppError `ERR_CLOUDAPP_AUDIT`: it is not in the log; `ERR_CLOUDAPP_LIMIT` if the holder's quota is used
   *   up; `ERR_CLOUDAPP_CLOSED`.
   */
  async append(entry: AuditEntry, options?: AppendOptions): Promise<AuditReceipt> {
    checkOptions('append', options, ['reserved', 'delegate'])
    const reserved = options?.reserved === true
    if (this.#closing !== undefined) throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the audit log is closed')
    if (entry.action.startsWith('log.')) {
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', "actions that start with 'log.' are the log's own")
    }
    const delegate = options?.delegate ?? entry.holder
    if (!reserved && delegate !== undefined) this.#quota?.take(delegate)
    return this.#enqueue(entry, reserved)
  }

  /** Counts repeats of one operation, for what would be too many records one by one. The caller closes it. */
  counter(
    entry: Omit<AuditEntry, 'outcome'>,
    options?: CounterOptions,
    delegate?: AppendOptions['delegate'],
  ): OperationCounter {
    const share = delegate === undefined ? {} : { delegate }
    return new OperationCounter((record) => this.append(record, share), entry, options)
  }

  /** A signed head over everything written so far, for a customer to keep. @throws CloudAppError `ERR_CLOUDAPP_AUDIT` */
  async head(): Promise<AuditHead> {
    if (this.#closing !== undefined) return this.#closing
    await this.#running
    await this.#sync()
    return this.#writer.sign()
  }

  /** Ends the log with a closing record and a head, which it returns. Idempotent. */
  close(): Promise<AuditHead> {
    this.#closing ??= this.#end()
    return this.#closing
  }

  async #end(): Promise<AuditHead> {
    try {
      await this.#enqueue({ action: 'log.close', outcome: 'allowed' }, true)
      await this.#enqueue('head', true)
      await this.#running
      await this.#sync()
      return this.#writer.sign()
    } finally {
      clearTimeout(this.#headTimer)
      clearTimeout(this.#syncTimer)
      this.#writer.close()
    }
  }

  #enqueue(entry: Wanted['entry'], reserved: boolean): Promise<AuditReceipt> {
    return new Promise((resolve, reject) => {
      this.#queue.push({ entry, reserved, resolve, reject })
      this.#running ??= this.#run()
    })
  }

  async #run(): Promise<void> {
    // Whoever appends in this turn of the event loop goes into the same batch.
    await Promise.resolve()
    while (this.#queue.length > 0) await this.#writeBatch(this.#queue.splice(0, BATCH))
    this.#running = undefined
  }

  async #writeBatch(batch: Waiting[]): Promise<void> {
    try {
      if (this.#broken !== undefined) throw this.#broken
      const outcomes = this.#writer.write(batch)
      this.#unsynced = true
      if (this.#settings.fsync === 'always') await this.#sync()
      this.#failure = outcomes.find((outcome): outcome is CloudAppError => outcome instanceof CloudAppError)
      for (const [i, outcome] of outcomes.entries()) {
        if (outcome instanceof CloudAppError) batch[i]?.reject(outcome)
        else batch[i]?.resolve(outcome)
      }
      await this.#rotate()
      this.#schedule()
    } catch (cause) {
      const error = CloudAppError.is(cause) ? cause : auditError('the audit log can not be written', cause)
      for (const { reject } of batch) reject(error)
    }
  }

  async #sync(): Promise<void> {
    if (this.#broken !== undefined) throw this.#broken
    if (this.#unsynced) {
      this.#unsynced = false
      try {
        await this.#writer.file.sync()
      } catch (cause) {
        this.#broken = auditError(
          'the audit log could not be brought to the disk; nothing more is written to it',
          cause,
        )
        throw this.#broken
      }
    }
    for (const head of this.#writer.takeHeads()) this.#settings.onHead?.(head)
  }

  async #rotate(): Promise<void> {
    const { file, log } = this.#writer
    if (file.size < this.#settings.segmentBytes || this.#writer.reserveInUse) return
    try {
      await file.rotate()
    } catch (cause) {
      // The live file goes on being written; the next batch tries again.
      this.#failure = auditError('no new segment of the audit log can be begun', cause)
      return
    }
    const details = { log, headEvery: this.#settings.headEvery }
    const entry: AuditEntry = { action: 'log.segment', outcome: 'allowed', details }
    const [outcome] = this.#writer.write([{ entry, reserved: true }])
    if (outcome instanceof CloudAppError) this.#failure = outcome
    this.#unsynced = true
  }

  #schedule(): void {
    const { intervalMs, headMs } = this.#settings
    if (this.#closing !== undefined) return
    if (this.#unsynced && this.#syncTimer === undefined) {
      this.#syncTimer = setTimeout(() => {
        this.#syncTimer = undefined
        this.#sync().catch((error: CloudAppError) => {
          this.#failure = error
        })
      }, intervalMs)
      this.#syncTimer.unref()
    }
    if (this.#writer.unvouched > 0 && this.#headTimer === undefined) {
      this.#headTimer = setTimeout(() => {
        this.#headTimer = undefined
        if (this.#writer.unvouched === 0 || this.#closing !== undefined) return
        this.#enqueue('head', false).catch((error: CloudAppError) => {
          this.#failure = error
        })
      }, headMs)
      this.#headTimer.unref()
    }
  }
}

const DEFAULTS = {
  clock: Date as { now(): number },
  fsync: 'always' as AuditFsync,
  intervalMs: 1000,
  headEvery: 256,
  headMs: 1000,
  segmentBytes: 64 * 1024 * 1024,
  reserveBytes: 256 * 1024,
}

async function openWriter(settings: Settings, found: Awaited<ReturnType<typeof recoverLog>>): Promise<ChainWriter> {
  const { path, key, clock, headEvery, reserveBytes } = settings
  try {
    const file = await LiveFile.open(path, found.size)
    const reserve = Reserve.open(path, reserveBytes)
    // The record was whole, its newline was not.
    if (found.unended) file.add(Buffer.from('\n'))
    return new ChainWriter({ file, reserve, key, now: () => clock.now(), headEvery }, found)
  } catch (cause) {
    throw CloudAppError.is(cause) ? cause : auditError(`the audit log ${path} can not be opened`, cause)
  }
}

function monotonicMs(): number {
  return Number(process.hrtime.bigint() / 1_000_000n)
}

function auditError(message: string, cause: unknown): CloudAppError {
  const { code } = cause as NodeJS.ErrnoException
  return new CloudAppError('ERR_CLOUDAPP_AUDIT', code === undefined ? message : `${message} (${code})`, { cause })
}
