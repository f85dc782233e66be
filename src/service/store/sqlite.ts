import { createRequire } from 'node:module'
import type Database from 'libsql'
import { CloudAppError } from '../../errors.js'
import { SCHEMA, SCHEMA_VERSION, storeError } from './schema.js'

/**
 * One SQLite file with the schema of findings: WAL, synchronous=FULL (what a transaction wrote is on disk when it returns),
 * held by one process at a time. Synchronous. Whatever fails throws ERR_CLOUDAPP_STORE.
 */
export class SqliteFile {
  readonly #db: Database.Database
  readonly #owner: Database.Database
  readonly #statements = new Map<string, Database.Statement>()
  #open = true

  private constructor(db: Database.Database, owner: Database.Database) {
    this.#db = db
    this.#owner = owner
  }

  static open(path: string): SqliteFile {
    let db: Database.Database | undefined
    let owner: Database.Database | undefined
    try {
      // One owner at a time, by a transaction in a file beside the store that the kernel ends with the process. Not SQLite's
      // exclusive mode on the store itself: the binding lets that lock go only when its statements are collected. Waiting
      // would block the event loop, and another owner does not let go before it ends.
      const Sqlite = loadSqlite()
      owner = new Sqlite(`${path}-owner`, { timeout: 0 } as Database.Options)
      owner.exec('BEGIN IMMEDIATE')
      db = new Sqlite(path, { timeout: 0 } as Database.Options)
      db.exec('PRAGMA journal_mode=WAL')
      db.exec('PRAGMA synchronous=FULL')
      db.exec('PRAGMA cache_size=-32768')
      // Pages of 4 KiB: index pages that many commits touch are written back once for all of them.
      db.exec('PRAGMA wal_autocheckpoint=8192')
      db.exec('PRAGMA journal_size_limit=67108864')
      const version = (db.prepare('PRAGMA user_version').all()[0] as { user_version: number }).user_version
      if (version > SCHEMA_VERSION) {
        throw new CloudAppError('ERR_CLOUDAPP_STORE', `${path} is of version ${version}; this is ${SCHEMA_VERSION}`)
      }
      db.exec('BEGIN IMMEDIATE')
      db.exec(SCHEMA)
      db.exec('COMMIT')
      return new SqliteFile(db, owner)
    } catch (error) {
      db?.close()
      if (owner?.inTransaction) owner.exec('ROLLBACK')
      owner?.close()
      throw storeError(error, `The store of findings ${path} can not be opened`, path)
    }
  }

  /** The first row, if there is one. */
  get(sql: string, ...values: unknown[]): unknown {
    // Not the binding's get(): it leaves the statement, and its read transaction, open until it is collected.
    return this.all(sql, ...values)[0]
  }

  all(sql: string, ...values: unknown[]): unknown[] {
    return guarded(() => this.#prepare(sql).all(...values))
  }

  run(sql: string, ...values: unknown[]): void {
    guarded(() => this.#prepare(sql).run(...values))
  }

  /** Does `work` and commits; if that fails, nothing is done and `undo` is called. */
  transaction<T>(work: () => T, undo?: () => void): T {
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

  #prepare(sql: string): Database.Statement {
    this.#assertOpen()
    let statement = this.#statements.get(sql)
    if (!statement) {
      statement = this.#db.prepare(sql)
      this.#statements.set(sql, statement)
    }
    return statement
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

function guarded<T>(work: () => T): T {
  try {
    return work()
  } catch (error) {
    throw storeError(error, 'The store of findings failed')
  }
}
