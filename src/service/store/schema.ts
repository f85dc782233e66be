import { CloudAppError } from '../../errors.js'

/** `PRAGMA user_version` of the file. Version 2 has owners and artifacts; what a file of version 1 lacks is added. */
export const SCHEMA_VERSION = 2

/** Idempotent. Times are milliseconds since 1970; severity and status are OCSF's ids. */
export const SCHEMA = `
  CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
  CREATE TABLE IF NOT EXISTS vm(uuid TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
  CREATE INDEX IF NOT EXISTS vm_by_name ON vm(name);
  CREATE TABLE IF NOT EXISTS finding(
    id INTEGER PRIMARY KEY,
    sequence INTEGER NOT NULL UNIQUE,
    uid TEXT NOT NULL UNIQUE,
    vm TEXT NOT NULL,
    vm_name TEXT NOT NULL,
    key TEXT NOT NULL,
    severity INTEGER NOT NULL,
    status INTEGER NOT NULL,
    change TEXT NOT NULL,
    count INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    time INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    acknowledged TEXT,
    json TEXT NOT NULL
  );
  CREATE UNIQUE INDEX IF NOT EXISTS finding_open_key ON finding(key, vm) WHERE status < 4;
  CREATE INDEX IF NOT EXISTS finding_by_vm ON finding(vm, status, severity, sequence);
  CREATE INDEX IF NOT EXISTS finding_by_severity ON finding(status, severity, sequence);
  CREATE TABLE IF NOT EXISTS removed(
    sequence INTEGER PRIMARY KEY, vm TEXT NOT NULL, severity INTEGER NOT NULL, status INTEGER NOT NULL
  );
  CREATE INDEX IF NOT EXISTS removed_by_vm ON removed(vm, sequence, severity, status);
  CREATE TABLE IF NOT EXISTS owner(vm TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID;
  CREATE TABLE IF NOT EXISTS artifact(
    finding TEXT NOT NULL,
    digest TEXT NOT NULL,
    vm TEXT NOT NULL,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    truncated INTEGER NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY(finding, digest)
  ) WITHOUT ROWID;
  CREATE INDEX IF NOT EXISTS artifact_by_digest ON artifact(digest);
  CREATE INDEX IF NOT EXISTS artifact_by_vm ON artifact(vm, at);
  PRAGMA user_version = ${SCHEMA_VERSION};
`

// Primary result codes of sqlite3.h.
const REASONS: Readonly<Record<string, string>> = {
  SQLITE_BUSY: 'another process holds it',
  SQLITE_LOCKED: 'another connection holds it',
  SQLITE_CORRUPT: 'the file is damaged',
  SQLITE_NOTADB: 'the file is no SQLite database',
  SQLITE_FULL: 'the disk is full',
  SQLITE_READONLY: 'the file is read-only',
  SQLITE_IOERR: 'the disk failed',
  SQLITE_CANTOPEN: 'the file can not be opened',
}

/** What the binding threw, as ERR_CLOUDAPP_STORE with the reason in `details.reason`; our own errors pass unchanged. */
export function storeError(error: unknown, message: string, path?: string): CloudAppError {
  if (CloudAppError.is(error)) return error
  const given =
    error instanceof Error && 'code' in error && typeof error.code === 'string' && error.code !== ''
      ? error.code
      : undefined
  const text = error instanceof Error ? error.message : String(error)
  // Extended codes (SQLITE_IOERR_WRITE) begin with their primary one; an open that fails gives only "…: 14".
  const primary =
    Object.keys(REASONS).find((code) => given?.startsWith(code)) ??
    (/: 14\W*$/.test(text) ? 'SQLITE_CANTOPEN' : undefined)
  const reason = primary === undefined ? text : (REASONS[primary] as string)
  return new CloudAppError('ERR_CLOUDAPP_STORE', `${message}: ${reason}`, {
    cause: error,
    details: { reason: primary ?? given ?? 'unknown', ...(path !== undefined && { path }) },
  })
}
