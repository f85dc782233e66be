/** What a check found. */
export type HitKind =
  | 'hidden-process'
  | 'hidden-thread'
  | 'hidden-module'
  | 'unlisted-code'
  | 'diverted-syscall'
  | 'diverted-function'
  | 'diverted-interrupt'
  | 'diverted-entry'
  | 'hooked-pointer'
  | 'broken-list'

/** A fact of the evidence. Addresses are bigint. */
export type Evidence = string | number | bigint | boolean | readonly Evidence[] | { readonly [name: string]: Evidence }

/** What shows a hit. */
export interface HitEvidence {
  /** The process it is about. */
  readonly process?: { readonly pid: number; readonly name: string }
  /** The kernel module it is about, or that it leads to. */
  readonly module?: string
  readonly data: Readonly<Record<string, Evidence>>
}

/** One thing that should not be, with what shows it. Everything read from the guest is as the guest had it. */
export interface Hit {
  /** Names the kind and the subject; the same on every scan of the same boot. */
  readonly id: string
  readonly kind: HitKind
  /** One sentence for a person; names come from the guest and are not escaped for a terminal. */
  readonly title: string
  readonly severity: 'low' | 'medium' | 'high' | 'critical'
  /** `high`: independent looks agree; `medium`: the guest did not run between the looks, a race is not ruled out. */
  readonly confidence: 'medium' | 'high'
  readonly evidence: HitEvidence
}

/** A hit of one look, before it is confirmed by others. */
export interface Candidate {
  readonly hit: Omit<Hit, 'confidence'>
  /**
   * What must stay the same from look to look for it to be the same thing (addresses, start times): a busy guest
   * shows another short-lived process or a module on its way out at every look.
   */
  readonly identity: string
  /**
   * What an intruder who changes the identity between looks (a start time, a pid) leaves as it is: something else at the
   * same place at every one of many looks is no coincidence.
   */
  readonly place?: string
  /** How many looks must agree. */
  readonly looks: number
}
