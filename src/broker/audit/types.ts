import type { PublicKey } from '../../capabilities/keys.js'

/** How an audited act ended. */
export type AuditOutcome = 'allowed' | 'refused' | 'failed'

/** What one record says. Text past 512 letters is cut; bigint is written as `0x…`. */
export interface AuditEntry {
  /** A word with dots, `session.open`, `token.redeem`, `memory.read`, `capability.revoke`. `log.*` is the log's own. */
  readonly action: string
  readonly outcome: AuditOutcome
  /** The VM's name. */
  readonly vm?: string
  /** The right that was needed. */
  readonly right?: string
  /** The last block of the chain it was done with. */
  readonly block?: string
  /** The holder's key; also what a quota is counted by, unless {@link AppendOptions.delegate} says otherwise. */
  readonly holder?: PublicKey
  /** The session, as the broker numbers them. */
  readonly session?: string
  /** Who the transport says the peer is. */
  readonly peer?: string
  /** Code of the error, where there was one. */
  readonly code?: string
  /** At most 32 further facts. */
  readonly details?: Readonly<Record<string, string | number | bigint | boolean>>
}

/** A record as it was read back. */
export interface AuditRecord {
  /** From 1, without gaps, over all segments. */
  readonly seq: number
  /** ISO 8601 UTC, from the broker's clock that never goes back. */
  readonly time: string
  /** Nanoseconds of the host's monotonic clock: orders records of one boot. */
  readonly mono: string
  /** Hash of the record before, hexadecimal; 64 zeros for the first. */
  readonly prev: string
  /** SHA-256, hexadecimal. */
  readonly hash: string
  readonly entry: AuditEntry
}

/** The broker's signed word that its log had reached this record. The customer keeps it: no later cut goes unnoticed. */
export interface AuditHead {
  /** Identity of the log: 32 hexadecimal digits. */
  readonly log: string
  readonly seq: number
  readonly hash: string
  /** Milliseconds since 1970 UTC. */
  readonly time: number
  readonly broker: PublicKey
  /** Base64url. */
  readonly signature: string
}

/** When a record counts as written. */
export type AuditFsync =
  /** `append` resolves when the record is on the disk: it survives a power failure. Waiting records share a sync. */
  | 'always'
  /** `append` resolves when the kernel has it: it survives a killed broker. A sync follows within `intervalMs`. */
  | 'interval'

/** Receipt for a written record. */
export interface AuditReceipt {
  readonly seq: number
  readonly hash: string
}

export interface AppendOptions {
  /**
   * For what must never wait for disk space: revoking, unpausing, unpatching. On a full disk the record goes to space
   * that was set aside for it, and joins the log when there is room again.
   */
  readonly reserved?: boolean
  /**
   * Whose share of the log it takes; the holder's if absent. Whom the owner gave a token can make keys without end and narrow
   * it for each: they share one.
   */
  readonly delegate?: PublicKey
}

/** Bounds. */
export const AUDIT_LIMITS = {
  /** Bytes of a line; a longer one is no record of ours. */
  line: 64 * 1024,
  text: 512,
  details: 32,
} as const
