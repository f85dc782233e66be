import { CloudAppError } from '../../errors.js'
import { type ElfSection, notesOf } from './elf-header.js'
import { registersOfXen } from './elf-registers.js'
import { beyond, malformed, RegionList, SNAPSHOT_LIMITS, type SnapshotBytes, type SnapshotParts } from './snapshot.js'

/** Types of notes named 'Xen' (Xen: docs/misc/dump-core-format.txt). */
const NOTE_HEADER = 0x200_0001
const NOTE_FORMAT = 0x200_0003
const MAGIC_PV = 0xf00f_ebedn
const MAGIC_HVM = 0xf00f_ebeen
const PAGE = 4096n
/** Entries of .xen_pfn read at a time. */
const CHUNK = 65_536n
/** 4 TiB of guest memory. */
const MAX_PAGES = 1n << 30n

/**
 * Reads where the memory of a `xl dump-core` file lies: section .xen_pages has the pages, .xen_pfn the frame of each, in
 * any order.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` for a PV guest: its page tables hold machine frames, which after the
 *   dump mean nothing.
 */
export async function parseXen(bytes: SnapshotBytes, sections: readonly ElfSection[]): Promise<SnapshotParts> {
  const section = (name: string): ElfSection => {
    const found = sections.filter((one) => one.name === name)
    if (found.length === 1 && found[0] !== undefined) return found[0]
    throw malformed(`the Xen dump has ${found.length} sections ${name}`)
  }
  const table = async ({ name, offset, size }: ElfSection): Promise<Buffer> => {
    if (size > BigInt(SNAPSHOT_LIMITS.table)) throw beyond(`bytes of section ${name}`, size, SNAPSHOT_LIMITS.table)
    return bytes.read(offset, Number(size), `section ${name}`)
  }
  const header = headerOf(await table(section('.note.Xen')))
  if (header.magic === MAGIC_PV || sections.some(({ name }) => name === '.xen_p2m')) {
    throw new CloudAppError(
      'ERR_CLOUDAPP_UNSUPPORTED',
      'the Xen dump is of a PV guest, whose page tables hold machine frames: only PVH and HVM guests are read',
      { details: { format: 'xl dump-core of a PV guest' } },
    )
  }
  if (header.magic !== MAGIC_HVM)
    throw malformed(`the Xen dump has the unknown magic number ${header.magic.toString(16)}`)
  if (header.pageSize !== PAGE) throw malformed(`the Xen dump has pages of ${header.pageSize} bytes, not ${PAGE}`)
  const frames = section('.xen_pfn')
  const pages = section('.xen_pages')
  if (header.pages > MAX_PAGES) throw beyond('pages of the Xen dump', header.pages, Number(MAX_PAGES))
  if (frames.size < header.pages * 8n) throw malformed('.xen_pfn is shorter than the pages of the Xen dump')
  if (pages.size < header.pages * PAGE) throw malformed('.xen_pages is shorter than the pages of the Xen dump')
  const regions = new RegionList(bytes.size)
  for (let first = 0n; first < header.pages; first += CHUNK) {
    const count = header.pages - first < CHUNK ? header.pages - first : CHUNK
    const chunk = await bytes.read(frames.offset + first * 8n, Number(count) * 8, 'section .xen_pfn')
    addRuns(regions, chunk, pages.offset + first * PAGE)
  }
  const status = sections.some(({ name }) => name === '.xen_prstatus')
    ? await table(section('.xen_prstatus'))
    : undefined
  return { regions: regions.done(), ...(status === undefined ? {} : { vcpus: registersOfXen(status) }) }
}

/** Adds a run of pages at a time: one page at a time, a guest of some GiB has millions. */
function addRuns(regions: RegionList, chunk: Buffer, offset: bigint): void {
  const frames = new BigUint64Array(chunk.buffer.slice(chunk.byteOffset, chunk.byteOffset + chunk.length))
  for (let from = 0; from < frames.length; ) {
    const frame = frames[from] ?? 0n
    let to = from + 1
    while (to < frames.length && frames[to] === frame + BigInt(to - from)) to++
    // All ones: the guest had no such page any more when it was to be written.
    if (frame !== 0xffff_ffff_ffff_ffffn) {
      regions.add(frame * PAGE, BigInt(to - from) * PAGE, offset + BigInt(from) * PAGE, 'a page of the Xen dump')
    }
    from = to
  }
}

function headerOf(notes: Buffer): { magic: bigint; pages: bigint; pageSize: bigint } {
  let header: Buffer | undefined
  for (const { name, type, desc } of notesOf(notes)) {
    if (name !== 'Xen') continue
    if (type === NOTE_HEADER && desc.length >= 32) header = desc
    if (type === NOTE_FORMAT && desc.length >= 8 && desc.readUInt32LE(4) !== 0) {
      throw new CloudAppError(
        'ERR_CLOUDAPP_UNSUPPORTED',
        `the Xen dump's format has version ${desc.readUInt32LE(4)}; 0 is known`,
      )
    }
  }
  if (header === undefined) throw malformed('the Xen dump has no header note')
  return { magic: header.readBigUInt64LE(0), pages: header.readBigUInt64LE(16), pageSize: header.readBigUInt64LE(24) }
}
