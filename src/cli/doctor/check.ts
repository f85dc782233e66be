/** One answer of `cloudapp doctor`. */
export interface Check {
  readonly name: string
  /** `ok`; `missing`: something that can be used without it; `bad`: something is broken or unusable. */
  readonly status: 'ok' | 'missing' | 'bad'
  /** What was found, and where. */
  readonly found: string
  /** The command or change that mends it. Present unless `status` is `ok`. */
  readonly fix?: string
}

/** What one kind of source needs, and whether this host has it. */
export interface SourceVerdict {
  readonly kind: string
  readonly usable: boolean
  readonly why: string
}

export function ok(name: string, found: string): Check {
  return { name, status: 'ok', found }
}

export function missing(name: string, found: string, fix: string): Check {
  return { name, status: 'missing', found, fix }
}

export function bad(name: string, found: string, fix: string): Check {
  return { name, status: 'bad', found, fix }
}
