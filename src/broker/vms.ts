import type { OwnedVm, OwnerRegister } from '../capabilities/owners.js'
import { CloudAppError } from '../errors.js'
import type { GuestVm } from '../vmi/guest.js'

/** Opens a VM by the source its register entry names. */
export type OpenSource = (uri: string) => Promise<GuestVm>

interface OpenVm {
  readonly source: string
  readonly bootNonce: string
  readonly vm: Promise<GuestVm>
}

/** The VMs the broker has open: each once, whoever asks, from the first use on. */
export class VmPool {
  readonly #open: OpenSource
  readonly #register: OwnerRegister
  readonly #vms = new Map<string, OpenVm>()
  /** Told when a VM that was open has gone, with the reason. */
  onGone: (uuid: string, reason: CloudAppError) => void = () => {}
  #closed = false

  constructor(register: OwnerRegister, open: OpenSource) {
    this.#register = register
    this.#open = open
  }

  /** @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND`, or what the source throws. */
  get(uuid: string): Promise<GuestVm> {
    const owned = this.#register.byUuid(uuid)
    if (owned === undefined || this.#closed) {
      return Promise.reject(new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `There is no VM ${uuid} here`, { vm: uuid }))
    }
    const known = this.#vms.get(uuid)
    if (known?.source === owned.source && known.bootNonce === owned.bootNonce) return known.vm
    if (known !== undefined) this.#drop(uuid, known)
    return this.#start(owned)
  }

  /** Lets go of VMs the register no longer has in this boot. */
  async refresh(): Promise<void> {
    for (const [uuid, known] of this.#vms) {
      const owned = this.#register.byUuid(uuid)
      if (owned?.source !== known.source || owned.bootNonce !== known.bootNonce) this.#drop(uuid, known)
    }
  }

  async close(): Promise<void> {
    this.#closed = true
    const all = [...this.#vms.values()]
    this.#vms.clear()
    await Promise.all(all.map(({ vm }) => closeQuietly(vm)))
  }

  #start(owned: OwnedVm): Promise<GuestVm> {
    const { uuid, source, bootNonce } = owned
    const vm = this.#open(source)
    const entry = { source, bootNonce, vm }
    this.#vms.set(uuid, entry)
    vm.then(
      (opened) => {
        const gone = () => {
          if (this.#vms.get(uuid) !== entry) return
          this.#vms.delete(uuid)
          this.onGone(uuid, goneError(owned.name, opened.closed.reason))
        }
        if (opened.closed.aborted) gone()
        else opened.closed.addEventListener('abort', gone, { once: true })
      },
      // Not kept: the VM may come up a moment later.
      () => {
        if (this.#vms.get(uuid) === entry) this.#vms.delete(uuid)
      },
    )
    return vm
  }

  #drop(uuid: string, known: OpenVm): void {
    this.#vms.delete(uuid)
    void closeQuietly(known.vm)
  }
}

function goneError(name: string, cause: unknown): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_SOURCE', `The VM ${name} has gone`, { vm: name, cause })
}

/** A source that fails to close has nobody left to tell. */
async function closeQuietly(vm: Promise<GuestVm>): Promise<void> {
  try {
    await (await vm).close()
  } catch {
    // It never opened, or is gone already.
  }
}
