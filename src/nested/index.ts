import type { GuestVm } from '../vmi/guest.js'

/** What a verifier says of a clone. Only this leaves the contained VM. */
export interface Verdict {
  readonly verdict: 'sound' | 'unsound' | 'undecided'
  /** Bounded text for a person; at most 4,096 bytes of UTF-8. */
  readonly reason: string
}

/**
 * Judges a clone of a client VM inside a contained nested VM that is discarded afterwards. Cloning and containment are
 * not part of this version; the interface is here so that a verifier can be written and tested on any {@link GuestVm}.
 */
export interface Verifier {
  readonly name: string
  verify(clone: GuestVm, options: { readonly signal: AbortSignal }): Promise<Verdict>
}
