import { CA_MORE, CURSOR_SIZE, type Shim, STATUS_WORDS } from '../native/abi.js'
import { checked } from '../native/shim.js'
import type { Fault, FaultReason } from './memory.js'

/** enum ca_reason. */
const REASONS: readonly (FaultReason | undefined)[] = [
  undefined,
  'not-present',
  'non-canonical',
  'reserved-bit',
  'outside-ram',
  'source',
  'denied',
]

/** What an operation borrows for its time: buffers that are reused between calls. */
export interface Workspace {
  readonly cursor: Uint8Array
  readonly status: BigUint64Array
  /** The halves of `status`: taking a bigint out costs memory, and most are small numbers. */
  readonly statusHalves: Uint32Array
  /** A table of a few requests, and its halves: making one for each call would cost more than reading a few words. */
  readonly table: BigUint64Array
  readonly halves: Uint32Array
  /** Result rows of one crossing; grown by {@link scratch}. */
  scratch: Uint8Array
}

/** u64 of {@link Workspace.table}. */
const TABLE_WORDS = 128

export function newWorkspace(): Workspace {
  const table = new BigUint64Array(TABLE_WORDS)
  const status = new BigUint64Array(STATUS_WORDS)
  return {
    cursor: new Uint8Array(CURSOR_SIZE),
    status,
    statusHalves: new Uint32Array(status.buffer),
    table,
    halves: new Uint32Array(table.buffer),
    scratch: new Uint8Array(0),
  }
}

/** At least `bytes` of the workspace's scratch memory. */
export function scratch(workspace: Workspace, bytes: number): Uint8Array {
  if (workspace.scratch.length < bytes) workspace.scratch = new Uint8Array(bytes)
  return workspace.scratch
}

/** Where an operation runs: the library, the memory's handle, and the flags of this slice. */
export interface Slice {
  readonly shim: Shim
  readonly handle: number
  readonly flags: number
  readonly budget: number
}

/**
 * One verb under way, cut into slices. `step` makes one crossing and says whether the operation is finished; the driver
 * decides what happens between two.
 */
export interface Operation<T> {
  /** False if it surely takes longer than a look at the clock. */
  readonly brief?: boolean
  step(slice: Slice, workspace: Workspace): boolean
  result(consistent: boolean): T
}

/** True when the verb has ended; throws what the library reports as an error. */
export function ended(shim: Shim, result: number): boolean {
  return checked(shim, result) !== CA_MORE
}

/** A status word that is below 2^32. */
export function word(workspace: Workspace, index: number): number {
  return workspace.statusHalves[2 * index] as number
}

/** A fault from its numbers in a table. */
export function fault(reason: number, level: number, address: bigint, entry: bigint): Fault {
  return { reason: REASONS[reason] ?? 'source', address, level, entry }
}
