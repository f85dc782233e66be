import type { Grant } from '../../capabilities/caveats.js'
import { type AddressRange, MAX_ADDRESS, meetRanges } from '../../capabilities/ranges.js'
import type { Right } from '../../capabilities/rights.js'
import { CloudAppError } from '../../errors.js'
import type { GuestVm } from '../../vmi/guest.js'
import { type GuestMemory, PHYSICAL, type Space } from '../../vmi/memory.js'
import { type ScopedProcess, ScopedProcesses } from './processes.js'
import { ScopedMemory } from './scoped-memory.js'
import { isScoped, outOfScope } from './touches.js'

/** Address spaces one operation may name: each is looked up in the guest. */
const MAX_SPACES = 64

/** Upper half of the addresses: the kernel's, in every process's page table too. */
const UPPER_HALF: readonly AddressRange[] = [{ first: 1n << 63n, last: MAX_ADDRESS }]

/** How one capability reaches a VM's memory, as its grant limits it. */
export class ScopedAccess {
  readonly #grant: Grant
  readonly #held: () => unknown
  #processes: { readonly vm: GuestVm; readonly opened: Promise<ScopedProcesses> } | undefined

  /** @param held names the pause of this capability that holds the VM now */
  constructor(grant: Grant, held: () => unknown) {
    this.#grant = grant
    this.#held = held
  }

  /** The processes that the grant reaches and that have memory of their own. */
  async processes(vm: GuestVm): Promise<ScopedProcess[]> {
    return (await this.#open(vm)).list()
  }

  /**
   * Runs an operation on the memory as far as the grant reaches it. `spaces` are those the operation names: of each it is
   * found out whose it is, and afterwards once more; what was read while a process ended, or became another, is not given
   * out.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_DENIED`, and what `run` throws
   */
  async perform<T>(
    vm: GuestVm,
    memory: GuestMemory,
    spaces: Iterable<Space>,
    right: Right,
    run: (memory: GuestMemory) => Promise<T>,
  ): Promise<T> {
    if (!isScoped(this.#grant)) return run(memory)
    const ranges = new Map<Space, readonly AddressRange[]>([[PHYSICAL, this.#grant.memory?.physical ?? []]])
    const used: ScopedProcess[] = []
    for (const space of new Set(spaces)) {
      if (space === PHYSICAL) continue
      if (ranges.size > MAX_SPACES) {
        throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `An operation names at most ${MAX_SPACES} address spaces`, {
          details: { limit: 'spaces', most: MAX_SPACES },
        })
      }
      const { reach, process } = await this.#reach(vm, space)
      if (reach.length === 0) throw outOfScope(right, 0n, space)
      ranges.set(space, reach)
      if (process !== undefined) used.push(process)
    }
    const result = await run(new ScopedMemory(memory, (space) => ranges.get(space) ?? [], this.#held))
    if (used.length > 0) {
      const processes = await this.#open(vm)
      for (const process of used) if (!(await processes.holds(process))) throw changed(right, process)
    }
    return result
  }

  async #reach(
    vm: GuestVm,
    space: Space,
  ): Promise<{ readonly reach: readonly AddressRange[]; readonly process?: ScopedProcess }> {
    const { kernel = [], process: inProcess = [] } = this.#grant.memory ?? {}
    const processes = await this.#open(vm)
    if (space === processes.kernel) return { reach: kernel }
    if (inProcess.length === 0) return { reach: [] }
    const process = await processes.of(space)
    if (process === undefined) return { reach: [] }
    // A process's page table maps the kernel as well: that is the kernel's memory, not the process's.
    const lower = meetRanges(inProcess, [{ first: 0n, last: processes.lastUserAddress }])
    return { reach: [...lower, ...meetRanges(kernel, UPPER_HALF)], process }
  }

  #open(vm: GuestVm): Promise<ScopedProcesses> {
    if (this.#processes?.vm === vm) return this.#processes.opened
    const opened = ScopedProcesses.open(vm, this.#grant.processes)
    const entry = { vm, opened }
    this.#processes = entry
    opened.catch(() => {
      // The kernel may be found a moment later.
      if (this.#processes === entry) this.#processes = undefined
    })
    return opened
  }
}

function changed(right: Right, { task }: ScopedProcess): CloudAppError {
  return new CloudAppError(
    'ERR_CLOUDAPP_DENIED',
    `The process ${task.pid} ended or became another while it was read; ask for the processes again`,
    { right, details: { pid: task.pid } },
  )
}
