import type { PublicKey } from '../capabilities/keys.js'
import type { Right } from '../capabilities/rights.js'
import type { CloudAppError, CloudAppErrorCode } from '../errors.js'
import type { CompiledProgram } from '../vmi/events/compile.js'
import type { EventCounts } from '../vmi/events/source.js'
import type { OperationCounter } from './audit/counter.js'
import type { AuditLog } from './audit/log.js'
import type { AuditEntry } from './audit/types.js'
import type { Lease } from './lease.js'

/** Refusals of one delegate, or one user or address that are recorded one by one: so many at once, so many a second; further ones are counted. */
const REFUSALS_AT_ONCE = 256
const REFUSALS_PER_SECOND = 10

/** Of them, those whose refusals are counted. */
const MAX_PEERS = 1024

const REFUSALS: ReadonlySet<CloudAppErrorCode> = new Set<CloudAppErrorCode>([
  'ERR_CLOUDAPP_DENIED',
  'ERR_CLOUDAPP_REVOKED',
  'ERR_CLOUDAPP_EXPIRED',
  'ERR_CLOUDAPP_LIMIT',
  'ERR_CLOUDAPP_TOKEN',
  'ERR_CLOUDAPP_PROOF',
])

/** Writes what happens at the broker into the audit log. */
export class Recorder {
  readonly #log: AuditLog
  readonly #counters = new Map<Lease, Map<string, OperationCounter>>()
  readonly #refusals = new Map<string, { at: number; left: number; kept: number }>()

  constructor(log: AuditLog) {
    this.#log = log
  }

  /**
   * Before an operation runs: nothing if a record covers it already, or a promise to wait for. If it rejects, the operation
   * must not run: what can not be recorded is not done.
   */
  operation(lease: Lease, action: string, right: Right): Promise<void> | undefined {
    const counters = this.#counters.get(lease) ?? new Map<string, OperationCounter>()
    this.#counters.set(lease, counters)
    let counter = counters.get(action)
    if (counter === undefined) {
      counter = this.#log.counter({ ...this.#about(lease), action, right }, {}, lease.delegate)
      counters.set(action, counter)
    }
    return counter.begin()
  }

  /** An operation has given out so many bytes. */
  output(lease: Lease, action: string, bytes: number): void {
    this.#counters.get(lease)?.get(action)?.done(bytes)
  }

  /** An operation was refused or failed. Never throws: the holder is told of the refusal, not of the log. */
  async refused(lease: Lease, action: string, right: Right, error: CloudAppError): Promise<void> {
    this.#counters.get(lease)?.get(action)?.done(0, true)
    const outcome = REFUSALS.has(error.code) ? 'refused' : 'failed'
    await this.#refusal(lease.delegate, { ...this.#about(lease), action, right, outcome, code: error.code })
  }

  /** Something outside a lease was refused: a token, a proof, an owner. `group` is who shares a bound. */
  async refusedPeer(group: string, peer: string, session: string, action: string, error: CloudAppError): Promise<void> {
    const reason = error.details?.reason
    const details = typeof reason === 'string' ? { details: { reason } } : {}
    await this.#refusal(group, { action, outcome: 'refused', peer, session, code: error.code, ...details })
  }

  /** A record that must be there before the caller goes on. @throws CloudAppError `ERR_CLOUDAPP_AUDIT` */
  async must(entry: AuditEntry, delegate?: PublicKey): Promise<void> {
    await this.#log.append(entry, delegate === undefined ? {} : { delegate })
  }

  /** A record of what gives rights back or lets a VM run on: it never waits for disk space, and never stops the act. */
  async vital(entry: AuditEntry): Promise<void> {
    await this.#log.append(entry, { reserved: true }).catch(() => undefined)
  }

  /** A record that tells how something ended; the log's own failure shows on the next operation. */
  note(entry: AuditEntry): void {
    this.#log.append(entry).catch(() => undefined)
  }

  /** The holder's pause has ended. */
  async unpaused(lease: Lease, ms: number): Promise<void> {
    const details = { pausedMs: Math.round(ms) }
    await this.vital({ ...this.#about(lease), action: 'vm.unpause', right: 'vm.pause', outcome: 'allowed', details })
  }

  /** A subscription begins: what springs when is told once, with its trap; its batches are counted. */
  async subscribed(lease: Lease, right: Right, { trap, captures, uses }: CompiledProgram): Promise<void> {
    const details = {
      trap: trap.kind,
      ...(trap.kind === 'register' ? { register: trap.register } : {}),
      ...(trap.kind === 'msr' ? { msr: trap.msr } : {}),
      ...(trap.kind === 'breakpoint' ? { at: trap.at, space: trap.space } : {}),
      captures: captures.map(({ name }) => name).join(' '),
      memory: uses.memory,
    }
    const entry = { ...this.#about(lease), action: 'events.subscribe', right, outcome: 'allowed' as const, details }
    await this.must(entry, lease.delegate)
  }

  /** A subscription has ended, and the guest is as it was. */
  async unsubscribed(
    lease: Lease,
    right: Right,
    { trap }: CompiledProgram,
    counts: EventCounts | undefined,
  ): Promise<void> {
    const details = { trap: trap.kind, ...counts }
    await this.vital({ ...this.#about(lease), action: 'events.end', right, outcome: 'allowed', details })
  }

  /** A lease has ended: its open windows are written. */
  async ended(lease: Lease, reason: CloudAppError): Promise<void> {
    const counters = this.#counters.get(lease)
    this.#counters.delete(lease)
    for (const counter of counters?.values() ?? []) await counter.close().catch(() => undefined)
    await this.vital({ ...this.#about(lease), action: 'capability.end', outcome: 'allowed', code: reason.code })
  }

  #about(lease: Lease): Pick<AuditEntry, 'vm' | 'block' | 'holder' | 'session'> {
    return { vm: lease.vmName, block: lease.block, holder: lease.token.holder, session: lease.session }
  }

  async #refusal(who: string, entry: AuditEntry): Promise<void> {
    const now = performance.now()
    const seen = this.#refusals.get(who) ?? { at: now, left: REFUSALS_AT_ONCE, kept: 0 }
    seen.left = Math.min(REFUSALS_AT_ONCE, seen.left + ((now - seen.at) * REFUSALS_PER_SECOND) / 1000)
    seen.at = now
    this.#refusals.delete(who)
    this.#refusals.set(who, seen)
    const oldest = this.#refusals.keys().next()
    if (this.#refusals.size > MAX_PEERS && oldest.done !== true) this.#refusals.delete(oldest.value)
    if (seen.left < 1) {
      seen.kept++
      return
    }
    seen.left--
    const kept = seen.kept
    seen.kept = 0
    const details = kept === 0 ? entry.details : { ...entry.details, unrecordedBefore: kept }
    // Not a privileged act: a log that is full must not hide from the peer why it was refused.
    await this.#log.append({ ...entry, ...(details === undefined ? {} : { details }) }).catch(() => undefined)
  }
}
