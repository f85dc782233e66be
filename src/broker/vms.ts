import type { OwnedVm, OwnerRegister } from '../capabilities/owners.js'
import { CloudAppError } from '../errors.js'
import type { GuestVm } from '../vmi/guest.js'
import type { BrokerState } from './state.js'

/** Opens a VM by the source its register entry names. */
export type OpenSource = (uri: string) => Promise<GuestVm>

/** What a source calls a VM of which it does not know who it is or when it was started: a file has neither. */
const NIL_UUID = '00000000-0000-0000-0000-000000000000'
const NO_NONCE = '0'.repeat(32)

interface OpenVm {
  readonly source: string
  readonly bootNonce: string
  readonly vm: Promise<GuestVm>
}

/** The VMs the broker has open: each once, whoever asks, from the first use on. */
export class VmPool {
  readonly #open: OpenSource
  readonly #register: OwnerRegister
  readonly #state: BrokerState
  readonly #vms = new Map<string, OpenVm>()
  /** Told when a VM that was open has gone, with the reason. */
  onGone: (uuid: string, reason: CloudAppError) => void = () => {}
  #closed = false

  constructor(register: OwnerRegister, state: BrokerState, open: OpenSource) {
    this.#register = register
    this.#state = state
    this.#open = open
    this.#forgetStarts()
  }

  /**
   * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` if there is no such VM, or another is in its place; `ERR_CLOUDAPP_SOURCE` if
   *   it was started anew and the register does not say so; and what the source throws.
   */
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
    this.#forgetStarts()
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
    const vm = this.#openChecked(owned)
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

  /**
   * The register knows a VM by name and number, and only its administrator can say there that it was started anew. So that no
   * right over one VM or start becomes a right over the next that has its name or domid, the source's word is held against it.
   */
  async #openChecked(owned: OwnedVm): Promise<GuestVm> {
    const vm = await this.#open(owned.source)
    try {
      await this.#check(owned, vm)
    } catch (error) {
      await closeQuietly(Promise.resolve(vm))
      throw error
    }
    return vm
  }

  async #check({ name, uuid, bootNonce }: OwnedVm, { identity }: GuestVm): Promise<void> {
    if (identity.uuid !== NIL_UUID && identity.uuid !== uuid) {
      const why = `${name} is not where the register says: another VM is there`
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', why, { vm: name })
    }
    const found = identity.bootNonce
    if (found === NO_NONCE) return
    const known = this.#state.start(uuid)
    if (known?.bootNonce !== bootNonce) await this.#state.started({ uuid, bootNonce, found })
    else if (known.found !== found) {
      const why = `${name} was started anew, and rights over its earlier start end with that: the host's administrator runs cloudapp vm restarted ${name}, then rights are delegated again`
      throw new CloudAppError('ERR_CLOUDAPP_SOURCE', why, { vm: name })
    }
  }

  #forgetStarts(): void {
    this.#state.keepStarts((uuid) => this.#register.byUuid(uuid) !== undefined)
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
