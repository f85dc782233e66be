import { CloudAppError } from '../../errors.js'
import type { EventSource } from '../events/source.js'
import type { GuestVm, KernelProfileParts, PauseScope, VcpuReader, VmIdentity } from '../guest.js'
import type { LocalMemory } from '../local.js'
import type { GuestMemory } from '../memory.js'

/** Makes the kernel profile of the guest behind `memory`: `makeKernelProfile` of the Linux layer. */
export type ProfileMaker = (
  memory: GuestMemory,
  options: { readonly vcpus?: VcpuReader; readonly signal?: AbortSignal },
) => Promise<KernelProfileParts>

/** What a local source is made of. */
export interface LocalVmParts {
  readonly identity: VmIdentity
  /** Owned: closed with the VM. */
  readonly memory: LocalMemory
  readonly vcpus?: VcpuReader
  readonly pause?: () => Promise<PauseScope>
  readonly events?: EventSource
  /** Lets go of whatever else the source holds; called once, before the memory is closed. */
  readonly release?: (reason: CloudAppError) => Promise<void>
}

/** A VM whose memory is mapped in this process: what the raw and the QEMU source have in common. */
export class LocalVm implements GuestVm {
  readonly identity: VmIdentity
  readonly memory: LocalMemory
  // Declared, not defined: what a source lacks is absent, not undefined.
  declare readonly vcpus?: VcpuReader
  declare readonly pause?: () => Promise<PauseScope>
  declare readonly events?: EventSource
  readonly #release: LocalVmParts['release']
  readonly #ended = new AbortController()
  #profile: Promise<KernelProfileParts> | undefined
  #closing: Promise<void> | undefined

  constructor(parts: LocalVmParts) {
    this.identity = parts.identity
    this.memory = parts.memory
    this.#release = parts.release
    if (parts.vcpus !== undefined) this.vcpus = parts.vcpus
    if (parts.pause !== undefined) this.pause = parts.pause
    if (parts.events !== undefined) this.events = parts.events
  }

  get closed(): AbortSignal {
    return this.#ended.signal
  }

  /**
   * The kernel profile, made on the first call and kept.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_PROFILE` naming the part that is missing; `ERR_CLOUDAPP_CLOSED`;
   *   `ERR_CLOUDAPP_ABORTED`.
   */
  async kernel(options: { readonly signal?: AbortSignal } = {}): Promise<KernelProfileParts> {
    if (this.closed.aborted) throw this.closed.reason
    if (this.#profile !== undefined) return this.#profile
    const profile = this.#makeProfile(options.signal)
    this.#profile = profile
    // A failure is not kept: the guest may still be booting, or the caller's signal may have fired.
    profile.catch(() => {
      if (this.#profile === profile) this.#profile = undefined
    })
    return profile
  }

  async #makeProfile(signal: AbortSignal | undefined): Promise<KernelProfileParts> {
    // Loaded when asked for: who only reads memory needs no Linux layer.
    const { makeKernelProfile }: { makeKernelProfile: ProfileMaker } = await import('../linux/make-profile.js')
    const ended = signal === undefined ? this.closed : AbortSignal.any([this.closed, signal])
    return makeKernelProfile(this.memory, {
      signal: ended,
      ...(this.vcpus === undefined ? {} : { vcpus: this.vcpus }),
    })
  }

  /** Ends the handle for a reason of the source's own, such as the VM's end. Idempotent. */
  async end(reason: CloudAppError): Promise<void> {
    this.#closing ??= this.#close(reason)
    return this.#closing
  }

  /** Idempotent. */
  async close(): Promise<void> {
    return this.end(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the VM handle is closed', { vm: this.identity.name }))
  }

  async #close(reason: CloudAppError): Promise<void> {
    this.#ended.abort(reason)
    try {
      await this.#release?.(reason)
    } finally {
      this.memory.close()
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}
