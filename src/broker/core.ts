import type { Clock } from '../capabilities/clock.js'
import type { KeyPair, PublicKey } from '../capabilities/keys.js'
import type { OwnerRegister } from '../capabilities/owners.js'
import type { CloudAppError } from '../errors.js'
import type { Turns } from '../transport/turns.js'
import type { AuditLog } from './audit/log.js'
import type { DirectClient } from './direct/client.js'
import type { Lease } from './lease.js'
import type { Meter } from './meter.js'
import type { Recorder } from './recorder.js'
import type { Results } from './results.js'
import type { SeenBlocks } from './seen.js'
import type { BrokerState } from './state.js'
import type { VmPool } from './vms.js'

/** What the parts of one broker share. */
export interface BrokerCore {
  readonly key: KeyPair
  readonly register: OwnerRegister
  readonly clock: Clock
  readonly state: BrokerState
  readonly meter: Meter
  readonly recorder: Recorder
  readonly audit: AuditLog
  readonly vms: VmPool
  /** What is held of guests' memory for each delegate. */
  readonly results: Results
  /** Who works when on the broker's one thread. */
  readonly turns: Turns
  /** Longest pause of a VM at a time, in ms, whatever the token says. */
  readonly maxPauseMs: number
  /** Live capabilities. */
  readonly leases: Set<Lease>
  readonly seen: SeenBlocks
  /** The supervisor of direct access; absent where Xen enforces nothing. */
  readonly direct?: DirectClient
  /** How many of them each delegate has. */
  readonly held: Map<PublicKey, number>
  /** Ends a lease, tells its holder, and records it. */
  end(lease: Lease, reason: CloudAppError): void
}
