import type { PublicKey } from '../capabilities/keys.js'
import { Gate } from '../transport/gate.js'
import { LARGE_FRAME } from '../transport/session.js'
import { LIMITS } from '../vmi/memory.js'

/** A peer that has not taken an answer after this long is let go, in ms: others of its delegate wait for it. */
const STALL_MS = 60_000

/** The way of answers to a peer. */
export interface Outlet {
  /** Resolves when an answer of so many bytes, given in this turn of the event loop, has been taken, or the peer has gone. */
  taken(bytes: number): Promise<void>
  /** Ends the connection. */
  close(): unknown
}

/**
 * Bounds what the broker holds of guests' memory for one delegate, in all its sessions, from before it is read until the
 * peer has taken it: one result of {@link LIMITS.resultBytes}, or as many as are no longer together. Small results are let
 * pass: how many there are is bounded by the sessions.
 */
export class Results {
  readonly #gates = new Map<PublicKey, Gate>()

  /** Waits for room for a result of at most `weight` bytes; undefined if there is. Each entry must {@link leave}. */
  enter(delegate: PublicKey, weight: number): Promise<void> | undefined {
    if (weight < LARGE_FRAME) return undefined
    const gate = this.#gates.get(delegate) ?? newGate()
    this.#gates.set(delegate, gate)
    return gate.enter(weight)
  }

  /** Leaves when the result, of which `bytes` are given to the peer in this turn of the event loop, has been taken. */
  leave(delegate: PublicKey, weight: number, bytes: number, outlet: Outlet): void {
    if (weight < LARGE_FRAME) return
    if (bytes < LARGE_FRAME) {
      this.#leave(delegate, weight)
      return
    }
    const stalled = setTimeout(() => void outlet.close(), STALL_MS)
    void outlet.taken(bytes).then(() => {
      clearTimeout(stalled)
      this.#leave(delegate, weight)
    })
  }

  #leave(delegate: PublicKey, weight: number): void {
    const gate = this.#gates.get(delegate) as Gate
    gate.leave(weight)
    if (gate.running === 0) this.#gates.delete(delegate)
  }
}

// How many wait is bounded by the gates of the sessions, which are entered first.
const newGate = () =>
  new Gate({ running: Number.POSITIVE_INFINITY, weight: LIMITS.resultBytes, queued: Number.POSITIVE_INFINITY })

/** Bytes of a result that is guest memory, or a table of it; 0 of another. */
export function lengthOf(result: unknown): number {
  if (result instanceof Uint8Array) return result.length
  return Array.isArray(result) ? result.reduce((length: number, part) => length + lengthOf(part), 0) : 0
}
