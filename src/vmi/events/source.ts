import type { FaultReason } from '../memory.js'
import type { BytesCapture, Captures, EventProgram, Trap, WordCapture } from './program.js'

/** The names of a program's captures that are one word each. */
export type WordNames<C extends Captures> = {
  [K in keyof C]: C[K] extends WordCapture ? K : never
}[keyof C]

/** The names of a program's captures that are bytes. */
export type BytesNames<C extends Captures> = {
  [K in keyof C]: C[K] extends BytesCapture ? K : never
}[keyof C]

/** What every event tells; one entry an event. */
export interface FixedColumns {
  /** CLOCK_MONOTONIC of the host, ns. */
  readonly time: BigUint64Array
  readonly vcpu: Uint32Array
  /** Events of this program before this one, lost ones counted: a jump is what was lost there. */
  readonly serial: BigUint64Array
  /** Page-table root of the vCPU at the event, as it was in CR3 (before a write to it). */
  readonly cr3: BigUint64Array
  readonly rip: BigUint64Array
}

/**
 * Some events of one program, in their order, as columns. The columns are the receiver's; nothing writes to them later.
 */
export interface EventBatch<C extends Captures = Captures> {
  /** Events in it: 1 to 16,384, and about 1 MiB. */
  readonly count: number
  /** Events lost between the last one of the batch before and the last one of this, exactly. */
  readonly dropped: number
  /** One entry an event: what every event tells, and each capture of one word by its name. */
  readonly columns: FixedColumns & { readonly [K in WordNames<C>]: BigUint64Array }
  /** The bytes captured of the event `row`: a view, as long as what could be read. */
  bytes(name: BytesNames<C>, row: number): Uint8Array
  /** The same as text in UTF-8. */
  text(name: BytesNames<C>, row: number): string
  /** Why a capture was cut short; undefined if it was not. */
  fault(name: BytesNames<C>, row: number): FaultReason | undefined
}

export interface EventCounts {
  /** Events that the predicate let pass, lost ones included. */
  readonly matched: number
  /** Those that were lost: by the program's rate, because the ring was full, or because this subscriber fell behind. */
  readonly dropped: number
}

/**
 * The events of one subscription. Iterating gives batches as they come; what comes while nobody asks is kept up to the
 * subscription's bound, and lost (newest first, and counted) beyond it. The iteration ends when the stream is closed by its
 * owner, and throws the reason if it ended otherwise. Leaving the loop closes the stream.
 */
export interface EventStream<C extends Captures = Captures> extends AsyncIterable<EventBatch<C>>, AsyncDisposable {
  [Symbol.asyncIterator](): AsyncIterator<EventBatch<C>, undefined>
  /** What there is since the subscription, at this moment. Also after the end. */
  counts(): Promise<EventCounts>
  /**
   * Fires when the subscription ends. `reason` is a CloudAppError: `ERR_CLOUDAPP_CLOSED`, `ERR_CLOUDAPP_SOURCE` (the VM or the
   * agent has gone), `ERR_CLOUDAPP_REVOKED`, `ERR_CLOUDAPP_EXPIRED`.
   */
  readonly closed: AbortSignal
  /** Ends the subscription: the trap is taken out, bytes in the guest are put back. Idempotent. */
  close(): Promise<void>
}

export interface SubscribeOptions {
  /** Ends the subscription. */
  readonly signal?: AbortSignal
  /** Bytes of events kept for a consumer that does not ask. 8 MiB by default; 64 KiB to 256 MiB. */
  readonly buffer?: number
}

/** What a host traps. */
export interface EventSupport {
  readonly traps: readonly Trap['kind'][]
  /**
   * How a breakpoint is made: by INT3, or by a descriptor-table instruction where INT3 does not leave the guest; absent if
   * neither works.
   */
  readonly breakpoints?: 'int3' | 'descriptor'
}

/** Where the events of a VM come from: its source, or a broker. */
export interface EventSource<T extends Trap = Trap> {
  /**
   * Subscribes to the events of a program. The subscriber closes the stream.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT`, `ERR_CLOUDAPP_UNKNOWN_OPTION`, `ERR_CLOUDAPP_LIMIT` for a program
   *   that is not well-formed or one too many; `ERR_CLOUDAPP_UNSUPPORTED` if the host does not trap this; `ERR_CLOUDAPP_DENIED`;
   *   `ERR_CLOUDAPP_SOURCE`, also if another monitor has the VM
   */
  subscribe<const C extends Captures = Record<never, never>>(
    program: EventProgram<C, T>,
    options?: SubscribeOptions,
  ): Promise<EventStream<C>>
  /** What this host traps. */
  support(): Promise<EventSupport>
}

/** Events of a batch, at most. @internal */
export const BATCH_EVENTS = 16_384
