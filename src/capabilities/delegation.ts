import type { EventSource } from '../vmi/events/source.js'
import type { KernelProfileParts, PauseScope, VcpuReader, VmIdentity } from '../vmi/guest.js'
import type { MemoryReader, MemoryReaderSync, MemoryWriter, Space } from '../vmi/memory.js'
import type { Grant, Narrowing } from './caveats.js'
import type { TrapOf } from './event-rights.js'
import type { PublicKey } from './keys.js'
import type { Right } from './rights.js'
import type { Moment } from './time.js'
import type { TokenText } from './token.js'

/** What `vm.info` tells. */
export interface VmInfo {
  readonly state: 'running' | 'paused' | 'shut-down' | 'crashed'
  /** Bytes of RAM. */
  readonly memoryBytes: bigint
  readonly vcpus: number
}

/** `Then` if `Q` is among the rights `R`, else nothing. */
type If<R extends Right, Q extends Right, Then> = [Q] extends [R] ? Then : unknown

/** A guest's memory as far as it may be read. */
export interface DelegatedReader extends MemoryReader {
  /** Physical address after the last byte of RAM. */
  readonly end: bigint
  /** Present on a local source in the same process. */
  readonly sync?: MemoryReaderSync
}

/** A process of the VM that a delegation reaches. Name and cgroup are what the guest's kernel says of it. */
export interface DelegatedProcess {
  readonly pid: number
  /** The kernel's name of it (comm), at most 15 bytes; may hold control characters. */
  readonly name: string
  /** Path in cgroup v2, where the capability is limited to a cgroup. */
  readonly cgroup?: string
  /** Its address space, for reads; another one once it starts another program. */
  readonly space: Space
}

/**
 * What is left of a capability's limits at this moment: of each, the least over the blocks of its chain. A limit that no
 * block states is absent. Siblings of the same blocks draw on the same limits.
 */
export interface Budget {
  /** Operations in all. */
  readonly uses?: number
  /** Bytes of guest data in all. */
  readonly outputBytes?: number
  /** Operations that may start at once; `most` a second are added. */
  readonly operations?: RateLeft
  /** Bytes of guest data that may be asked for at once; negative while an answer that was larger is paid off. */
  readonly bytes?: RateLeft
  /** Milliseconds the VM may be held paused; `most` a minute are added. */
  readonly pauseMs?: RateLeft
  /** Milliseconds until the capability expires. */
  readonly timeMs: number
}

/** What is left of a rate. */
export interface RateLeft {
  readonly left: number
  /** What a whole period gives: a second, of pauses a minute. */
  readonly most: number
  /** Milliseconds until there is something left again; 0 if there is. */
  readonly retryAfterMs: number
}

type DelegatedMemory<R extends Right> = [Extract<R, 'memory.read' | 'memory.write'>] extends [never]
  ? unknown
  : { readonly memory: If<R, 'memory.read', DelegatedReader> & If<R, 'memory.write', MemoryWriter> }

/**
 * Events, of the traps that the rights allow: `events.register` for registers, CPUID, MSRs, descriptor tables and guest
 * requests, `events.memory` for breakpoints. Captures and predicates on general registers need `vcpu.read` too, those on
 * memory `memory.read`.
 */
type DelegatedEvents<R extends Right> = [Extract<R, 'events.register' | 'events.memory'>] extends [never]
  ? unknown
  : { readonly events: EventSource<TrapOf<R>> }

/** What every delegation has, whatever its rights. */
export interface DelegationBase<R extends Right> extends AsyncDisposable {
  /** Which VM; the token itself names it. */
  readonly identity: VmIdentity
  /** The rights held, in the order of their codes. */
  readonly rights: readonly Right[]
  /** Everything the capability says. */
  readonly grant: Grant
  /** The kernel profile, for the holder of any right on the VM. */
  kernel(options?: { readonly signal?: AbortSignal }): Promise<KernelProfileParts>
  /**
   * What is left of the limits. Costs nothing of them.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` where nothing meters the handle (`@cloudapp/sdk/testing`)
   */
  budget(): Promise<Budget>
  /** Fires when the handle ends. `reason` is a CloudAppError: closed, revoked, expired, or the VM has gone. */
  readonly closed: AbortSignal
  /** Idempotent; closes what was attenuated from it too. */
  close(): Promise<void>
  /** Narrows the type to what is held at run time. */
  has<Q extends Right>(right: Q): this is Delegation<R | Q>
  /**
   * The same handle with `right` in its type.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_DENIED` if it is not held; the attempt is reported to the broker.
   */
  demand<Q extends Right>(right: Q): Promise<Delegation<R | Q>>
  /**
   * A narrower handle on the same VM, backed by an attenuated token; it closes with this one.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_TOKEN` for anything that would widen; `ERR_CLOUDAPP_UNSUPPORTED` where the handle
   *   has no token behind it.
   */
  attenuate<Q extends R = R>(narrowing: AttenuateRequest<Q>): Promise<Delegation<Q>>
  /** An attenuated token for somebody else's key. @throws as {@link attenuate} */
  delegate<Q extends R = R>(narrowing: AttenuateRequest<Q> & { readonly to: PublicKey }): Promise<TokenText>
}

/** How to narrow; what is left out stays. */
export interface AttenuateRequest<Q extends Right>
  extends Omit<Narrowing, 'rights' | 'notBefore' | 'expires' | 'audience'> {
  readonly rights?: readonly Q[]
  readonly notBefore?: Moment
  readonly expires?: Moment
}

/**
 * A capability over one VM as an object: exactly what the rights `R` allow, and nothing else compiles. What is not
 * granted is absent at run time as well, and the broker checks each operation again. A delegation with `memory.read` is a
 * `GuestVm`: `Linux.attach(delegation)`.
 */
export type Delegation<R extends Right = never> = DelegationBase<R> &
  DelegatedMemory<R> &
  DelegatedEvents<R> &
  If<
    R,
    'memory.read',
    {
      /**
       * The processes the capability reaches that have memory of their own, as they are now; all, if it is limited to
       * none. Whoever may read only processes learns their address spaces here.
       */
      processes(): Promise<DelegatedProcess[]>
    }
  > &
  If<R, 'vcpu.read', { readonly vcpus: VcpuReader }> &
  If<R, 'vm.pause', { pause(): Promise<PauseScope> }> &
  If<R, 'vm.info', { info(): Promise<VmInfo> }>

/** Where a delegation's operations go: implemented by the broker's client, and by a broker in the same process. */
export interface DelegationPorts {
  readonly identity: VmIdentity
  /** Fires when the far side has ended the capability; the handle ends with its `reason`, a CloudAppError. */
  readonly ended?: AbortSignal
  kernel(options?: { readonly signal?: AbortSignal }): Promise<KernelProfileParts>
  readonly memory?: DelegatedReader & Partial<MemoryWriter>
  readonly vcpus?: VcpuReader
  pause?(): Promise<PauseScope>
  readonly events?: EventSource
  info?(): Promise<VmInfo>
  processes?(): Promise<DelegatedProcess[]>
  budget?(): Promise<Budget>
  /** Appends a block for the present holder and redeems the narrower token. */
  attenuate?(request: AttenuateRequest<Right>): Promise<{ readonly grant: Grant; readonly ports: DelegationPorts }>
  /** Appends a block for another holder. */
  delegate?(request: AttenuateRequest<Right> & { readonly to: PublicKey }): Promise<TokenText>
  /** Told when a right that is not held was demanded, so that the attempt is on the audit log. */
  denied?(right: Right): Promise<void>
  /** Told once when the holder closes the handle. */
  close?(): Promise<void>
}
