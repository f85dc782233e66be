import { randomBytes } from 'node:crypto'
import type { PublicKey } from '../../capabilities/keys.js'
import type { ArtifactRef } from '../artifacts/types.js'
import type { OcsfProduct } from '../ocsf/types.js'
import { inScope, type VmScope } from '../scope.js'
import { CursorCodec } from './cursor.js'
import { matchingSequences } from './list.js'
import { Owners } from './owners.js'
import { type RetainLimits, Retention } from './retention.js'
import { changeOf, type Row, type StoredChange, type StoreQuery } from './rows.js'
import { SqliteFile } from './sqlite.js'
import { FindingWriter, type Operation } from './write.js'

export interface StoreOptions {
  /** The file; its folder must exist. */
  readonly path: string
  /** Whose findings these are: `metadata.product` of each event. */
  readonly product: OcsfProduct
  /** Milliseconds since 1970; the system's clock by default. */
  readonly now?: () => number
}

/**
 * Findings in one SQLite file (WAL, synchronous=FULL: what {@link apply} returned is on disk). One process holds the file:
 * a second opener gets ERR_CLOUDAPP_STORE. Synchronous; the caller batches.
 */
export class FindingStore {
  readonly path: string
  readonly cursors: CursorCodec
  readonly owners: Owners
  readonly #db: SqliteFile
  readonly #writer: FindingWriter
  readonly #retention: Retention

  private constructor(db: SqliteFile, options: StoreOptions) {
    const now = options.now ?? Date.now
    this.path = options.path
    this.#db = db
    this.cursors = new CursorCodec(this.#secret())
    this.owners = new Owners(db)
    this.#writer = new FindingWriter(db, options.product, now)
    this.#retention = new Retention(db, now)
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
    return this.#writer.count
  }

  /** Sequence of the newest change; 0 in an empty store. */
  get sequence(): number {
    return this.#writer.sequence
  }

  /** Does all operations, durably, or none; see {@link FindingWriter.apply}. */
  apply(operations: readonly Operation[]): StoredChange[][] {
    return this.#writer.apply(operations)
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

  /** Removes findings by age and count; see {@link Retention.retain}. */
  retain(limits: RetainLimits): { readonly removed: number; readonly artifacts: readonly string[] } {
    const result = this.#retention.retain(this.count, limits)
    this.#writer.removed(result.removed)
    return result
  }

  /** What was removed after a change; see {@link Retention.removedSince}. */
  removedSince(query: Omit<StoreQuery, 'limit'>): { count: number; last: number; exact: boolean } {
    return this.#retention.removedSince(query)
  }

  /** Sequence of the last change that was removed with its finding; 0 if none was. */
  lastRemoved(): number {
    return this.#retention.lastRemoved()
  }

  /** An artifact of a finding, if the finding is in the scope and names it. */
  artifact(finding: string, digest: string, scope: VmScope): Pick<ArtifactRef, 'digest' | 'bytes'> | undefined {
    const row = this.#db.get(
      'SELECT digest, bytes, vm FROM artifact WHERE finding = ? AND digest = ?',
      finding,
      digest,
    ) as { digest: string; bytes: number; vm: string } | undefined
    return row && inScope(scope, row.vm) ? { digest: row.digest, bytes: row.bytes } : undefined
  }

  /** True if some finding names the artifact. */
  hasArtifact(digest: string): boolean {
    return this.#db.get('SELECT 1 FROM artifact WHERE digest = ? LIMIT 1', digest) !== undefined
  }

  /**
   * Lets go of the oldest artifact of the VM that has most bytes of them, so that no VM's evidence is pushed out by what
   * another makes the service domain keep. Returns its digest, or undefined if there are none.
   */
  dropOldestArtifact(): string | undefined {
    const victim = this.#db.get('SELECT vm FROM artifact GROUP BY vm ORDER BY sum(bytes) DESC LIMIT 1') as
      | { vm: string }
      | undefined
    if (!victim) return undefined
    const oldest = this.#db.get('SELECT finding, digest FROM artifact WHERE vm = ? ORDER BY at LIMIT 1', victim.vm) as {
      finding: string
      digest: string
    }
    this.#db.run('DELETE FROM artifact WHERE finding = ? AND digest = ?', oldest.finding, oldest.digest)
    return oldest.digest
  }

  /** VMs of a customer, as far as the store knows their owners. */
  ownedBy(key: PublicKey): ReadonlySet<string> {
    return this.owners.vmsOf(key)
  }

  /** Idempotent. */
  close(): void {
    this.#db.close()
  }

  #secret(): Uint8Array {
    const row = this.#db.get('SELECT value FROM meta WHERE name = ?', 'cursor-key') as { value: string } | undefined
    if (row) return Buffer.from(row.value, 'hex')
    const key = randomBytes(16)
    this.#db.run('INSERT INTO meta(name, value) VALUES(?, ?)', 'cursor-key', key.toString('hex'))
    return key
  }
}
