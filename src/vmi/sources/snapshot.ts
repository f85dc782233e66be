import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { basename } from 'node:path'
import { CloudAppError } from '../../errors.js'
import type { VcpuReader, VcpuRegisters } from '../guest.js'
import { LocalMemory, type PauseState, type RamRegion } from '../local.js'
import { LocalVm } from './local-vm.js'
import { refuseOtherFormat } from './snapshot-formats.js'

/** Options of the sources that read a snapshot file. */
export interface SnapshotOptions {
  readonly signal?: AbortSignal
  /** The VM's name; the file's by default. */
  readonly name?: string
}

export const SNAPSHOT_OPTIONS = ['signal', 'name'] as const

/** Bounds on a snapshot file, whoever wrote it. */
export const SNAPSHOT_LIMITS = {
  /** Ranges of memory as the file lists them, before neighbours are joined. */
  ranges: 1 << 20,
  /** Ranges of memory after neighbours are joined; what the native library's table takes. */
  regions: 65_536,
  /** Bytes of one table or note that are read at a time. */
  table: 8 * 1024 * 1024,
  vcpus: 1024,
} as const

/** Guest-physical addresses have at most 52 bits (Intel SDM vol. 3A, 4.1.4). */
const MAX_PHYSICAL = 1n << 52n

/** A file does not run. */
const FROZEN: PauseState = { paused: () => true, generation: () => 0 }

/** The bytes of a file, as far as its format's reader asks for them. */
export interface SnapshotBytes {
  /** In bytes. */
  readonly size: bigint
  /** @throws CloudAppError `ERR_CLOUDAPP_SOURCE` naming `what` if the file has no such bytes. */
  read(offset: bigint, length: number, what: string): Promise<Buffer>
}

/** What a format's reader makes of a file. */
export interface SnapshotParts {
  readonly regions: readonly RamRegion[]
  readonly vcpus?: readonly VcpuRegisters[]
}

/** The error for a file that is not what it says. */
export const malformed = (message: string, cause?: unknown): CloudAppError =>
  new CloudAppError('ERR_CLOUDAPP_SOURCE', message, cause === undefined ? {} : { cause })

/** The error for a file that runs into a bound. */
export const beyond = (what: string, found: number | bigint, limit: number): CloudAppError =>
  new CloudAppError('ERR_CLOUDAPP_LIMIT', `${what}: ${found}, and at most ${limit} are read`, {
    details: { found, limit },
  })

/** Checks that [offset, offset + length) lies in a file of `size` bytes. */
export function checkWithin(size: bigint, offset: bigint, length: bigint, what: string): void {
  if (offset <= size && length <= size - offset) return
  throw malformed(
    `${what} lies at byte ${offset} with ${length} bytes, and the file has ${size}: it was cut short, or is malformed`,
  )
}

class SnapshotFile implements SnapshotBytes {
  readonly #file: FileHandle
  readonly size: bigint

  private constructor(file: FileHandle, size: bigint) {
    this.#file = file
    this.size = size
  }

  static async open(path: string): Promise<SnapshotFile> {
    let file: FileHandle
    try {
      // O_NONBLOCK: a FIFO in place of the file must not hang us.
      file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    } catch (cause) {
      throw malformed(`the snapshot can not be opened: ${(cause as Error).message}`, cause)
    }
    try {
      const stat = await file.stat()
      if (!stat.isFile()) throw malformed(`${path} is not a regular file`)
      return new SnapshotFile(file, BigInt(stat.size))
    } catch (error) {
      await file.close()
      throw error
    }
  }

  async read(offset: bigint, length: number, what: string): Promise<Buffer> {
    checkWithin(this.size, offset, BigInt(length), what)
    const buffer = Buffer.alloc(length)
    for (let done = 0; done < length; ) {
      const { bytesRead } = await this.#file.read(buffer, done, length - done, Number(offset) + done).catch((cause) => {
        throw malformed(`${what} can not be read: ${(cause as Error).message}`, cause)
      })
      if (bytesRead === 0) throw malformed(`${what} is no longer in the file: it was cut short while it was read`)
      done += bytesRead
    }
    return buffer
  }

  async close(): Promise<void> {
    await this.#file.close()
  }
}

/** Collects ranges of memory as a file lists them, and joins those that continue one another. */
export class RegionList {
  readonly #size: bigint
  readonly #regions: { address: bigint; size: bigint; offset: bigint }[] = []

  /** @param size Bytes of the file. */
  constructor(size: bigint) {
    this.#size = size
  }

  /**
   * @param what The range in words, for the error.
   * @throws CloudAppError `ERR_CLOUDAPP_SOURCE` if it lies outside the file or the 52 bits of a physical address;
   *   `ERR_CLOUDAPP_LIMIT`.
   */
  add(address: bigint, size: bigint, offset: bigint, what: string): void {
    if (size === 0n) return
    if (address > MAX_PHYSICAL || size > MAX_PHYSICAL - address) {
      throw malformed(`${what} is memory at 0x${address.toString(16)}, beyond the 52 bits of a physical address`)
    }
    checkWithin(this.#size, offset, size, what)
    const last = this.#regions.at(-1)
    if (last !== undefined && last.address + last.size === address && last.offset + last.size === offset) {
      last.size += size
      return
    }
    if (this.#regions.length >= SNAPSHOT_LIMITS.ranges) {
      throw beyond('ranges of memory in the file', this.#regions.length + 1, SNAPSHOT_LIMITS.ranges)
    }
    this.#regions.push({ address, size, offset })
  }

  /**
   * The table, by address. A range that is listed twice with the same bytes of the file counts once.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_SOURCE` if two ranges overlap and have different bytes, or there is none;
   *   `ERR_CLOUDAPP_LIMIT`.
   */
  done(): RamRegion[] {
    const sorted = this.#regions.sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0))
    const joined: { address: bigint; size: bigint; offset: bigint }[] = []
    for (const region of sorted) {
      const last = joined.at(-1)
      const end = last === undefined ? -1n : last.address + last.size
      const same = last !== undefined && region.offset - last.offset === region.address - last.address
      if (last !== undefined && region.address <= end && same) {
        if (region.address + region.size > end) last.size = region.address + region.size - last.address
      } else if (region.address < end) {
        throw malformed(`the file has memory at 0x${region.address.toString(16)} twice, at different places`)
      } else {
        joined.push({ ...region })
      }
    }
    if (joined.length === 0) throw malformed('the file holds no memory')
    if (joined.length > SNAPSHOT_LIMITS.regions) {
      throw beyond('separate ranges of memory', joined.length, SNAPSHOT_LIMITS.regions)
    }
    return joined
  }
}

/**
 * Opens a snapshot: reads where its memory lies by `parse`, and maps it. Nothing in it changes, so results count as
 * consistent. As with `raw:`, the nil UUID and a boot nonce of zeros identify no VM.
 */
export async function openSnapshot(
  path: string,
  options: SnapshotOptions,
  parse: (bytes: SnapshotBytes) => Promise<SnapshotParts>,
): Promise<LocalVm> {
  const { signal } = options
  if (typeof path !== 'string' || path === '' || path.includes('\0')) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'path must name a file')
  }
  const aborted = () =>
    new CloudAppError('ERR_CLOUDAPP_ABORTED', 'opening the snapshot was aborted', { cause: signal?.reason })
  if (signal?.aborted === true) throw aborted()
  const file = await SnapshotFile.open(path)
  let parts: SnapshotParts
  try {
    await refuseOtherFormat(file)
    parts = await parse({
      size: file.size,
      read: (offset, length, what) => {
        if (signal?.aborted === true) throw aborted()
        return file.read(offset, length, what)
      },
    })
  } finally {
    await file.close()
  }
  const memory = LocalMemory.open({ path, regions: parts.regions, pause: FROZEN })
  const identity = {
    name: options.name ?? basename(path),
    uuid: '00000000-0000-0000-0000-000000000000',
    bootNonce: '0'.repeat(32),
  }
  const { vcpus } = parts
  if (vcpus === undefined || vcpus.length === 0) return new LocalVm({ identity, memory })
  const reader: VcpuReader = {
    registers: async (call) => {
      if (call?.signal?.aborted === true) {
        throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'reading registers was aborted', { cause: call.signal.reason })
      }
      return vcpus.map((vcpu) => ({ ...vcpu }))
    },
  }
  return new LocalVm({ identity, memory, vcpus: reader })
}
