import type { PublicKey } from './keys.js'
import type { AddressRange } from './ranges.js'
import type { Right } from './rights.js'
import type { MemoryScope, ProcessScope } from './scope.js'

/** What a token may arrive on. `code` is the word on the wire. */
export const TRANSPORTS = { unix: 1, vchan: 2, tls: 3, process: 4 } as const
export type TransportName = keyof typeof TRANSPORTS

/**
 * What a block can narrow beside the rights: a closed set, each with a decidable "is within" (see dimensions.ts). An
 * absent caveat leaves that dimension as the block before had it; a caveat this version does not know makes the whole
 * token invalid, so that no limit is ever passed over.
 */
export interface Caveats {
  /** Not valid before: milliseconds since 1970-01-01 UTC. */
  readonly notBefore?: number
  /** Not valid at or after: milliseconds since 1970-01-01 UTC. */
  readonly expires?: number
  /** The one broker that may honour the token. */
  readonly audience?: PublicKey
  /** Transports it may arrive on. */
  readonly transports?: readonly TransportName[]
  /** Operations in all, over the life of the block. */
  readonly uses?: number
  /** Bytes of guest data given out in all, over the life of the block. */
  readonly outputBytes?: number
  readonly bytesPerSecond?: number
  readonly operationsPerSecond?: number
  /** Milliseconds in each minute the VM may be held paused. */
  readonly pauseMsPerMinute?: number
  readonly memory?: MemoryScope
  /** Only these processes, in every right that reaches into processes; without `memory`, also no other memory. */
  readonly processes?: readonly ProcessScope[]
  /**
   * Of the system calls the VM's programs make, be told only of these, by number (ascending). Rights that tell of calls and
   * can not be held to numbers are refused under it; what is read shows calls under way all the same (syscall-limit.ts).
   */
  readonly syscalls?: readonly number[]
}

/** A boot of a VM: what a root block is about. */
export interface VmRef {
  /** RFC 9562 text form, lower case. */
  readonly uuid: string
  /** 32 hexadecimal digits, lower case. */
  readonly bootNonce: string
}

/** What a chain allows in all: the intersection of its blocks. */
export interface Grant extends Caveats {
  readonly vm: VmRef
  /** In the order of their codes. */
  readonly rights: readonly Right[]
  readonly notBefore: number
  readonly expires: number
  readonly audience: PublicKey
}

/** A block's own narrowing, as it was written. */
export interface Narrowing extends Caveats {
  /** Absent: as the block before. */
  readonly rights?: readonly Right[]
}

/** Bounds of the format. A token past one of them is refused before any signature is looked at. */
export const TOKEN_LIMITS = {
  blocks: 16,
  bytes: 16 * 1024,
  ranges: 64,
  processes: 32,
  syscalls: 512,
  /** System-call numbers stay below this. */
  syscallNumber: 65_536,
} as const

export type { AddressRange, MemoryScope, ProcessScope }
