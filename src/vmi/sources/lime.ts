import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import type { LocalVm } from './local-vm.js'
import {
  beyond,
  malformed,
  openSnapshot,
  RegionList,
  SNAPSHOT_LIMITS,
  SNAPSHOT_OPTIONS,
  type SnapshotBytes,
  type SnapshotOptions,
  type SnapshotParts,
} from './snapshot.js'

/** `lime_mem_range_header` (LiME: src/lime.h): u32 magic, u32 version, u64 first and last address, 8 reserved bytes. */
const HEADER = 32
const MAGIC = 0x4c69_4d45

/**
 * Opens a snapshot LiME or AVML wrote (LiME's `format=lime`): ranges of physical memory, each behind a header. A file of
 * LiME's `format=padded`, which has no headers, is `raw:`.
 *
 * There are no registers in it: no vCPUs, and no `pause`. Who the VM was, the file does not say either; its identity is
 * that of a raw file (see {@link openRaw}).
 *
 * @returns The VM; the caller closes it.
 * @throws CloudAppError `ERR_CLOUDAPP_SOURCE` if it can not be opened, is no such file or is cut short;
 *   `ERR_CLOUDAPP_UNSUPPORTED` for compressed files, naming what they are; `ERR_CLOUDAPP_LIMIT` for too many ranges;
 *   `ERR_CLOUDAPP_ABORTED`.
 */
export async function openLime(path: string, options: SnapshotOptions = {}): Promise<LocalVm> {
  checkOptions('openLime', options, SNAPSHOT_OPTIONS)
  return openSnapshot(path, options, parseLime)
}

/** Reads where the memory lies. */
export async function parseLime(bytes: SnapshotBytes): Promise<SnapshotParts> {
  const regions = new RegionList(bytes.size)
  let at = 0n
  for (let index = 0; at < bytes.size; index++) {
    if (index >= SNAPSHOT_LIMITS.regions) throw beyond('ranges of the LiME file', index + 1, SNAPSHOT_LIMITS.regions)
    const what = `range ${index} of the LiME file`
    const header = await bytes.read(at, HEADER, `the header of ${what}`)
    if (header.readUInt32LE(0) !== MAGIC) {
      throw malformed(
        index === 0
          ? "the file is no LiME file: its first bytes are not 'EMiL' (LiME's raw and padded formats are opened by raw:)"
          : `${what} does not begin with LiME's magic number`,
      )
    }
    const version = header.readUInt32LE(4)
    if (version === 2) {
      throw new CloudAppError(
        'ERR_CLOUDAPP_UNSUPPORTED',
        'the snapshot is a LiME file of version 2 (compressed by AVML or LiME), which is not read: write it uncompressed, or avml-convert it',
        { details: { format: 'LiME version 2' } },
      )
    }
    if (version !== 1) throw malformed(`${what} is of version ${version}; 1 is known`)
    const first = header.readBigUInt64LE(8)
    const last = header.readBigUInt64LE(16)
    if (last < first) throw malformed(`${what} ends before it begins`)
    const size = last - first + 1n
    regions.add(first, size, at + BigInt(HEADER), what)
    at += BigInt(HEADER) + size
  }
  return { regions: regions.done() }
}
