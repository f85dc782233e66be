import { checkOptions } from '../../options.js'
import { type ElfSegment, PT_LOAD, PT_NOTE, readElfHeaders } from './elf-header.js'
import { registersOfNotes } from './elf-registers.js'
import { parseXen } from './elf-xen.js'
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

/**
 * Opens a snapshot in an ELF64 core file of x86-64: of QEMU's `dump-guest-memory` (also `virsh dump --memory-only`), of
 * makedumpfile's `--elf-format`, or of `xl dump-core` for a PVH or HVM guest.
 *
 * `vcpus` is there if the file has registers: QEMU's note has all but EFER and MSR LSTAR, Xen's table lacks the descriptor
 * tables too; `missing` says so. There is no `pause`. Who the VM was, the file does not say; its identity is that of a raw
 * file (see {@link openRaw}).
 *
 * @returns The VM; the caller closes it.
 * @throws CloudAppError `ERR_CLOUDAPP_SOURCE` if it can not be opened, is no core file, is cut short or contradicts itself;
 *   `ERR_CLOUDAPP_UNSUPPORTED` for kdump's compressed formats and what else is known but not read, naming it;
 *   `ERR_CLOUDAPP_LIMIT` for too many parts; `ERR_CLOUDAPP_ABORTED`.
 */
export async function openElf(path: string, options: SnapshotOptions = {}): Promise<LocalVm> {
  checkOptions('openElf', options, SNAPSHOT_OPTIONS)
  return openSnapshot(path, options, parseElf)
}

/** Reads where the memory lies, and the registers. */
export async function parseElf(bytes: SnapshotBytes): Promise<SnapshotParts> {
  const { segments, sections } = await readElfHeaders(bytes)
  if (sections.some(({ name }) => name === '.note.Xen')) return parseXen(bytes, sections)
  const regions = new RegionList(bytes.size)
  for (const [index, { type, physical, size, offset }] of segments.entries()) {
    if (type === PT_LOAD) regions.add(physical, size, offset, `segment ${index} of the ELF file`)
  }
  return { regions: regions.done(), vcpus: registersOfNotes(await notes(bytes, segments)) }
}

async function notes(bytes: SnapshotBytes, segments: readonly ElfSegment[]): Promise<Buffer> {
  const found = segments.filter(({ type }) => type === PT_NOTE)
  // Core files have one; many could overlap, and make long work of a short file.
  if (found.length > 1) throw malformed(`the ELF file has ${found.length} segments of notes; one is known`)
  const [note] = found
  if (note === undefined) return Buffer.alloc(0)
  if (note.size > BigInt(SNAPSHOT_LIMITS.table)) throw beyond('bytes of notes', note.size, SNAPSHOT_LIMITS.table)
  return bytes.read(note.offset, Number(note.size), 'the notes of the ELF file')
}
