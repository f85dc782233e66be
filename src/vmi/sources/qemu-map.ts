import { CloudAppError } from '../../errors.js'
import type { RamRegion } from '../local.js'

/** A machine has a handful; each shadowed BIOS range of a PC adds one. */
const MAX_REGIONS = 256
/** Guest-physical addresses of x86-64 have at most 52 bits. */
const PHYSICAL_END = 1n << 52n

/**
 * Finds where the RAM backend lies in the guest's physical address space, in what QEMU's `info mtree -f` says: the
 * rendered ("flat") view of the address space `memory`, what the CPUs see. Neighbouring runs are joined, so ranges that differ only
 * in being write-protected (a PC's shadowed BIOS) are one. Format: QEMU softmmu/memory.c, mtree_print_flatview().
 *
 * @param names the names the backend's region can have there.
 * @param fileSize bytes of the backend; a map that goes past them is refused.
 * @throws CloudAppError ERR_CLOUDAPP_SOURCE if there is no such view or backend, ERR_CLOUDAPP_PROTOCOL if the map contradicts itself.
 */
export function ramRegions(text: string, names: readonly string[], fileSize: bigint): RamRegion[] {
  const view = text.split(/^FlatView #\d+\s*$/m).find((part) => /^ AS "memory", root: /m.test(part))
  if (!view) throw new CloudAppError('ERR_CLOUDAPP_SOURCE', "QEMU's 'info mtree -f' shows no address space 'memory'")
  const found: RamRegion[] = []
  for (const line of view.split('\n')) {
    const match =
      /^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (\S+)\): (.+?)(?: @([0-9a-f]{16}))?(?: KVM)?\s*$/.exec(line)
    if (!match) continue
    const [, first, last, kind, region, at] = match
    // rom: RAM the guest can only read at the moment. Bytes are in the same file.
    if (!names.includes(region ?? '') || (kind !== 'ram' && kind !== 'rom')) continue
    const address = BigInt(`0x${first}`)
    const end = BigInt(`0x${last}`) + 1n
    found.push({ address, size: end - address, offset: BigInt(`0x${at ?? '0'}`) })
  }
  if (found.length === 0) {
    throw new CloudAppError(
      'ERR_CLOUDAPP_SOURCE',
      `The memory backend '${names[0]}' is not in the guest's address space`,
    )
  }
  const regions = joined(found)
  check(regions, fileSize)
  return regions
}

function joined(found: readonly RamRegion[]): RamRegion[] {
  const regions: RamRegion[] = []
  for (const next of [...found].sort((a, b) => (a.address < b.address ? -1 : 1))) {
    const last = regions.at(-1)
    if (last && last.address + last.size === next.address && last.offset + last.size === next.offset) {
      regions[regions.length - 1] = { ...last, size: last.size + next.size }
    } else {
      regions.push(next)
    }
  }
  return regions
}

function check(regions: readonly RamRegion[], fileSize: bigint): void {
  const wrong = (message: string, address: bigint): CloudAppError =>
    new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `QEMU's memory map: ${message}`, { address })
  if (regions.length > MAX_REGIONS) throw wrong(`${regions.length} runs of RAM`, 0n)
  let end = 0n
  for (const region of regions) {
    if (region.size <= 0n || region.address + region.size > PHYSICAL_END)
      throw wrong('impossible range', region.address)
    if (region.address < end) throw wrong('RAM overlaps itself', region.address)
    if (region.offset + region.size > fileSize) throw wrong('RAM goes past the end of its file', region.address)
    end = region.address + region.size
  }
}
