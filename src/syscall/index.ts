/**
 * What an author of a system-call detector writes. The tracer that feeds it is not part of this version; the interface
 * is here so that detectors, tests and findings agree on one shape.
 */
export interface SyscallEvent {
  /** Guest time in nanoseconds since boot where the source gives it, else host monotonic time. */
  readonly time: bigint
  readonly vcpu: number
  /** Thread id in the initial pid namespace, and the process it belongs to. */
  readonly pid: number
  readonly tgid: number
  /** Number of the x86-64 table (arch/x86/entry/syscalls/syscall_64.tbl). */
  readonly number: number
  /** rdi, rsi, rdx, r10, r8, r9. */
  readonly arguments: readonly [bigint, bigint, bigint, bigint, bigint, bigint]
}

/** What a detector makes of events: enough to raise a finding. */
export interface Detection {
  /** The same thing seen again has the same key: one finding, counted up. */
  readonly key: string
  readonly title: string
  readonly severity: 'low' | 'medium' | 'high' | 'critical'
  readonly evidence: Readonly<Record<string, unknown>>
}

/** Judges batches of events. Pure: it keeps its own state and touches nothing else. */
export interface Detector<E = SyscallEvent> {
  readonly name: string
  /** Called with events in order; `dropped` were lost before the first of them. */
  observe(events: readonly E[], dropped: number): readonly Detection[]
}
