import { createHash } from 'node:crypto'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import type { EventSource } from '../vmi/events/source.js'
import type { GuestVm, KernelProfileParts, PauseScope, VcpuReader, VmIdentity } from '../vmi/guest.js'
import { makeKernelProfile } from '../vmi/linux/make-profile.js'
import type { Attacks } from './attacks.js'
import type { SyntheticEvents } from './events.js'
import type { Built } from './kernel/build.js'
import type { Lies } from './lies.js'
import { BufferMemory } from './memory.js'

export interface SyntheticVmOptions {
  /** `synthetic` by default. */
  readonly name?: string
  /** Leaves `memory.write` out. False by default. */
  readonly readOnly?: boolean
  /** Leaves the vCPUs out. True by default. */
  readonly vcpus?: boolean
  /** False for a guest that stands still, as a snapshot does. By default its clock goes on from call to call. */
  readonly running?: boolean
  /** What the guest does in the meantime: called before each call on its memory, unless it is paused. */
  readonly meanwhile?: () => void
  /** Directory of cached kernel profiles; false, the default, makes one for each handle. */
  readonly cache?: string | false
}

/** Opens a handle on a synthetic guest. */
export function openSyntheticVm(
  built: Built,
  attacks: Attacks,
  lies: Lies,
  events: SyntheticEvents,
  options: SyntheticVmOptions,
): GuestVm & { readonly events: EventSource } {
  checkOptions('vm', options, ['name', 'readOnly', 'vcpus', 'running', 'meanwhile', 'cache'])
  return new SyntheticVm(built, attacks, lies, events, options)
}

class SyntheticVm implements GuestVm {
  readonly identity: VmIdentity
  readonly memory: BufferMemory
  readonly vcpus?: VcpuReader
  readonly events: EventSource
  readonly #end = new AbortController()
  readonly #cache: string | false
  #pauses = 0
  #profile: Promise<KernelProfileParts> | undefined

  constructor(built: Built, attacks: Attacks, lies: Lies, events: SyntheticEvents, options: SyntheticVmOptions) {
    const { machine, tasks } = built
    const jiffies = built.kernel.image.symbol('jiffies')
    const name = options.name ?? 'synthetic'
    // The same guest is the same VM and boot each time it is opened.
    const seed = createHash('sha256')
      .update(`${name} ${machine.placement.text} ${machine.placement.pageOffset}`)
      .digest('hex')
    const uuid = `${seed.slice(0, 8)}-${seed.slice(8, 12)}-4${seed.slice(13, 16)}-8${seed.slice(17, 20)}-${seed.slice(20, 32)}`
    this.identity = { name, uuid, bootNonce: seed.slice(32, 64) }
    this.memory = new BufferMemory(machine.ram.subarray(0, lies.end), {
      paused: () => this.#pauses > 0,
      meanwhile: () => {
        if (options.running !== false) machine.setU64(jiffies, machine.u64(jiffies) + 1n)
        options.meanwhile?.()
      },
      readOnly: options.readOnly ?? false,
      closed: this.#end.signal,
    })
    this.events = events.source(this.#end.signal)
    this.#cache = options.cache ?? false
    if (options.vcpus !== false) {
      this.vcpus = {
        registers: async () => {
          this.#check()
          return tasks.queues.areas.map((_, index) => attacks.registers(index))
        },
      }
    }
  }

  get closed(): AbortSignal {
    return this.#end.signal
  }

  async pause(): Promise<PauseScope> {
    this.#check()
    this.#pauses++
    let open = true
    const close = async () => {
      if (open) this.#pauses--
      open = false
    }
    return { close, [Symbol.asyncDispose]: close }
  }

  kernel(options: { readonly signal?: AbortSignal } = {}): Promise<KernelProfileParts> {
    this.#check()
    this.#profile ??= makeKernelProfile(this.memory, { vcpus: this.vcpus, cache: this.#cache, ...options })
    this.#profile.catch(() => {
      this.#profile = undefined
    })
    return this.#profile
  }

  async close(): Promise<void> {
    if (this.#end.signal.aborted) return
    this.#end.abort(
      new CloudAppError('ERR_CLOUDAPP_CLOSED', `${this.identity.name} is closed`, { vm: this.identity.name }),
    )
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #check(): void {
    if (this.#end.signal.aborted) throw this.#end.signal.reason
  }
}
