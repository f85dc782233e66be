import type { EventSource } from './events/source.js'
import type { GuestMemory } from './memory.js'

/**
 * Which VM this is, beyond its name. The boot nonce is written by the host: new on create and on clone, kept on
 * migration, so that a right over one boot is no right over the next.
 */
export interface VmIdentity {
  readonly name: string
  /** RFC 9562 text form, lower case. */
  readonly uuid: string
  /** 32 hexadecimal digits. */
  readonly bootNonce: string
}

/** Registers of one vCPU an introspector needs. What the source can not give is absent, never zero. */
export interface VcpuRegisters {
  readonly index: number
  readonly rip?: bigint
  readonly rsp?: bigint
  readonly rflags?: bigint
  readonly cr0?: bigint
  readonly cr3?: bigint
  readonly cr4?: bigint
  readonly efer?: bigint
  readonly gsBase?: bigint
  readonly kernelGsBase?: bigint
  readonly idtBase?: bigint
  readonly idtLimit?: number
  readonly gdtBase?: bigint
  /** MSR IA32_LSTAR (c0000082): where SYSCALL enters the kernel. */
  readonly lstar?: bigint
  /** Registers the source could not give, and why. */
  readonly missing?: Readonly<Record<string, string>>
}

/** Reads virtual CPUs. */
export interface VcpuReader {
  registers(options?: { readonly signal?: AbortSignal }): Promise<VcpuRegisters[]>
}

/** Holds the VM paused until closed; scopes nest. `await using scope = await vm.pause()`. */
export interface PauseScope extends AsyncDisposable {
  close(): Promise<void>
}

/**
 * The kernel profile of a VM as bytes: made once per VM and boot by an unprivileged parser, handed to every holder of a
 * right on the VM. `linux/profile.ts` knows what is inside; sources and the broker only carry it.
 */
export interface KernelProfileParts {
  readonly header: Uint8Array
  /** The large parts (all symbols, all types), fetched only when somebody looks in them. */
  section(name: string): Promise<Uint8Array>
}

/**
 * The second seam: one VM, as far as the holder may see it. Each part is present only where the source has it or the
 * capability grants it.
 */
export interface GuestVm extends AsyncDisposable {
  readonly identity: VmIdentity
  readonly memory?: GuestMemory
  readonly vcpus?: VcpuReader
  pause?(): Promise<PauseScope>
  readonly events?: EventSource
  /** The kernel profile; made on the first call. */
  kernel(options?: { readonly signal?: AbortSignal }): Promise<KernelProfileParts>
  /** Fires when the handle ends: closed, revoked, expired, or the VM has gone. `reason` is a CloudAppError. */
  readonly closed: AbortSignal
  /** Idempotent. */
  close(): Promise<void>
}
