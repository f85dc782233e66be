import { type SyntheticGuest, syntheticGuest } from '../../../../src/testing/index.js'
import { integrity } from '../../../../src/vmi/linux/integrity/integrity.js'
import { Linux } from '../../../../src/vmi/linux/linux.js'
import type { GuestMemory } from '../../../../src/vmi/memory.js'

/** An address nothing has. */
export const WILD = 0x0123_4567_89ab_cdefn

export const put = (guest: SyntheticGuest, at: bigint, value: bigint) =>
  guest.bytes(at, 8).set(new Uint8Array(new BigUint64Array([value]).buffer))
export const get = (guest: SyntheticGuest, at: bigint) =>
  new BigUint64Array(guest.bytes(at, 8).slice().buffer)[0] as bigint

/** Counts what the memory gives. */
const counted = (memory: GuestMemory) => {
  const count = { rows: 0, searches: 0 }
  const { walk, search } = memory
  memory.walk = async (...request) => {
    const results = await walk.apply(memory, request)
    for (const { rows } of results) count.rows += rows
    return results
  }
  memory.search = (...request) => {
    count.searches++
    return search.apply(memory, request)
  }
  return count
}

/** Attaches while the guest is sound, lets it lie, and inspects it; what stands still is not waited for. */
export const inspect = async (guest: SyntheticGuest, lie: () => void = () => {}) => {
  const vm = guest.vm({ running: false })
  const linux = await Linux.attach(vm)
  lie()
  const count = counted(linux.memory)
  // What is broken in a paused guest is not tried again.
  await using _ = await vm.pause?.()
  return { ...(await integrity(linux, vm.vcpus === undefined ? {} : { vcpus: vm.vcpus })), count }
}

export const busy = () => syntheticGuest({ seed: 31, functions: 200, busy: true })
