import { CloudAppError } from '../../src/errors.js'
import { BufferMemory } from '../../src/testing/memory.js'
import type { GuestVm, PauseScope } from '../../src/vmi/guest.js'
import type { GuestMemory } from '../../src/vmi/memory.js'

/** Of a source that does not know which VM it has, as of a file: a register may call it what it will. */
export function unnamed<V extends GuestVm>(vm: V): V {
  const identity = { name: 'source', uuid: '00000000-0000-0000-0000-000000000000', bootNonce: '0'.repeat(32) }
  return Object.defineProperty(vm, 'identity', { value: identity })
}

/** A VM in a buffer, with a pause that can be watched. */
export class FakeVm implements GuestVm {
  identity = { name: 'source', uuid: '00000000-0000-0000-0000-000000000000', bootNonce: '0'.repeat(32) }
  readonly #ended = new AbortController()
  readonly ram: Uint8Array
  readonly memory: GuestMemory
  readonly vcpus = { registers: async () => [{ index: 0, rip: 0xffff_ffff_8100_0000n, cr3: 0x1000n }] }
  pauses = 0
  headers = 0

  constructor(ram: Uint8Array, memory?: GuestMemory) {
    this.ram = ram
    this.memory = memory ?? new BufferMemory(ram, { paused: () => this.pauses > 0 })
  }

  get closed(): AbortSignal {
    return this.#ended.signal
  }

  async pause(): Promise<PauseScope> {
    this.pauses++
    let open = true
    const close = async () => {
      if (open) this.pauses--
      open = false
    }
    return { close, [Symbol.asyncDispose]: close }
  }

  async kernel() {
    this.headers++
    return {
      header: new Uint8Array([1, 2, 3]),
      section: async (name: string) => new Uint8Array(Buffer.from(`section ${name}`)),
    }
  }

  async close(): Promise<void> {
    this.#ended.abort(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the VM is closed'))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}
