import { type FileHandle, open, rm } from 'node:fs/promises'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import { type GuestMemory, PHYSICAL } from './memory.js'

/** Elf64_Ehdr, Elf64_Phdr (System V ABI, chapters 4 and 5; Linux: include/uapi/linux/elf.h). */
const EHDR = 64
const PHDR = 56
const PT_LOAD = 1
const ET_CORE = 4
const EM_X86_64 = 62

const PAGE = 4096
/** Pages fetched by one read. */
const CHUNK = 1024
/** Runs of memory a file may have: below PN_XNUM, where the header's count ends. */
const MOST_RUNS = 0xfffe

export interface DumpOptions {
  readonly signal?: AbortSignal
  /** Told now and then: bytes looked at so far, of how many. */
  readonly onProgress?: (done: bigint, all: bigint) => void
}

interface Run {
  readonly address: bigint
  /** In the file. */
  readonly offset: number
  pages: number
}

/**
 * Writes the guest's memory to an ELF64 core file that `elf:` opens: a PT_LOAD for each run of RAM, no registers. Pages of
 * zeros take no room on file systems with holes. It reads through the source, so bytes that this library patched into the
 * guest are not in the file. A VM that runs meanwhile is torn: hold it paused for one moment's picture.
 *
 * @param path of a file that does not exist; it is made readable to its owner only, and removed if the dump fails
 * @returns bytes of RAM in the file
 * @throws CloudAppError `ERR_CLOUDAPP_SOURCE` if the file can not be written, `ERR_CLOUDAPP_LIMIT` for memory in more than
 *   65,534 pieces, `ERR_CLOUDAPP_ABORTED`, and what the memory throws
 */
export async function dumpElf(memory: GuestMemory, path: string, options: DumpOptions = {}): Promise<bigint> {
  checkOptions('dumpElf', options, ['signal', 'onProgress'])
  const file = await open(path, 'wx', 0o600).catch((cause: Error) => {
    throw new CloudAppError('ERR_CLOUDAPP_SOURCE', `${path} can not be made: ${cause.message}`, { cause })
  })
  try {
    try {
      return await write(file, memory, options)
    } finally {
      await file.close()
    }
  } catch (cause) {
    await rm(path, { force: true })
    if (CloudAppError.is(cause)) throw cause
    throw new CloudAppError('ERR_CLOUDAPP_SOURCE', `${path} can not be written: ${(cause as Error).message}`, { cause })
  }
}

async function write(file: FileHandle, memory: GuestMemory, { signal, onProgress }: DumpOptions): Promise<bigint> {
  const runs: Run[] = []
  // The table of runs is known at the end only, and stands there; before it, whole pages.
  let end = PAGE
  for (let first = 0n; first < memory.end; first += BigInt(CHUNK * PAGE)) {
    const pages = BigUint64Array.from({ length: CHUNK }, (_, i) => first + BigInt(i * PAGE)).filter(
      (at) => at < memory.end,
    )
    const [result] = await memory.read(
      [{ space: PHYSICAL, at: pages, length: PAGE }],
      signal === undefined ? {} : { signal },
    )
    const absent = new Set(result?.faults.map(({ index }) => index))
    for (let i = 0; i < pages.length; ) {
      if (absent.has(i)) {
        i++
        continue
      }
      let to = i + 1
      while (to < pages.length && !absent.has(to)) to++
      await put(file, (result?.bytes ?? new Uint8Array(0)).subarray(i * PAGE, to * PAGE), end)
      extend(runs, pages[i] as bigint, end, to - i)
      end += (to - i) * PAGE
      i = to
    }
    onProgress?.(first + BigInt(pages.length * PAGE), memory.end)
  }
  const table = Buffer.concat(runs.map(segment))
  await file.write(table, 0, table.length, end)
  await file.write(header(runs.length, end), 0, EHDR, 0)
  return BigInt(end - PAGE)
}

function extend(runs: Run[], address: bigint, offset: number, pages: number): void {
  const last = runs.at(-1)
  if (last !== undefined && last.address + BigInt(last.pages * PAGE) === address) {
    last.pages += pages
    return
  }
  if (runs.length >= MOST_RUNS) {
    throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `the memory lies in more than ${MOST_RUNS} pieces`, {
      details: { limit: 'runs', most: MOST_RUNS },
    })
  }
  runs.push({ address, offset, pages })
}

/** Writes pages, leaving out stretches of zeros: they read as zeros from a hole. */
async function put(file: FileHandle, bytes: Uint8Array, at: number): Promise<void> {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const isZero = (page: number) => ZEROS.compare(view, page, page + PAGE) === 0
  for (let from = 0; from < view.length; ) {
    let to = from
    const hole = isZero(from)
    while (to < view.length && isZero(to) === hole) to += PAGE
    if (!hole) await file.write(view, from, to - from, at + from)
    from = to
  }
}

const ZEROS = Buffer.alloc(PAGE)

function segment({ address, offset, pages }: Run): Buffer {
  const row = Buffer.alloc(PHDR)
  const size = BigInt(pages * PAGE)
  row.writeUInt32LE(PT_LOAD, 0)
  row.writeBigUInt64LE(BigInt(offset), 8)
  row.writeBigUInt64LE(address, 24)
  row.writeBigUInt64LE(size, 32)
  row.writeBigUInt64LE(size, 40)
  return row
}

function header(segments: number, table: number): Buffer {
  const head = Buffer.alloc(EHDR)
  // EI_CLASS 64-bit, EI_DATA little-endian, EI_VERSION.
  head.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1])
  head.writeUInt16LE(ET_CORE, 16)
  head.writeUInt16LE(EM_X86_64, 18)
  head.writeUInt32LE(1, 20)
  head.writeBigUInt64LE(BigInt(table), 32)
  head.writeUInt16LE(EHDR, 52)
  head.writeUInt16LE(PHDR, 54)
  head.writeUInt16LE(segments, 56)
  return head
}
