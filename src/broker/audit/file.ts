import { closeSync, constants, fdatasync, fdatasyncSync, fstatSync, ftruncateSync, openSync, renameSync } from 'node:fs'
import { dirname } from 'node:path'
import { promisify } from 'node:util'
import { syncFolder } from '../../capabilities/files.js'
import { CloudAppError } from '../../errors.js'
import { segmentIndexes, segmentPath } from './lines.js'
import { writeAll } from './reserve.js'

const sync = promisify(fdatasync)

/** The live file of a log: whole lines are added at its end, or none of a batch is. */
export class LiveFile {
  readonly #path: string
  #fd: number
  #size: number

  private constructor(path: string, fd: number, size: number) {
    this.#path = path
    this.#fd = fd
    this.#size = size
  }

  /** Opens or makes the file and cuts it to `size`, if that is given. */
  static async open(path: string, size?: number): Promise<LiveFile> {
    const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600)
    const has = fstatSync(fd).size
    if (size !== undefined && has > size) ftruncateSync(fd, size)
    if (has === 0) await syncFolder(dirname(path))
    return new LiveFile(path, fd, Math.min(has, size ?? has))
  }

  get size(): number {
    return this.#size
  }

  /**
   * Adds bytes. If it can not (`ENOSPC`), the file is as it was before.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_AUDIT` if somebody else has changed the file's length; the system's error else.
   */
  add(bytes: Uint8Array): void {
    const has = fstatSync(this.#fd).size
    if (has !== this.#size) {
      const message = `the audit log ${this.#path} has ${has} bytes where ${this.#size} were written: something else changes it`
      throw new CloudAppError('ERR_CLOUDAPP_AUDIT', message)
    }
    try {
      writeAll(this.#fd, bytes, this.#size)
    } catch (error) {
      ftruncateSync(this.#fd, this.#size)
      throw error
    }
    this.#size += bytes.length
  }

  sync(): Promise<void> {
    return sync(this.#fd)
  }

  /** As {@link sync}, without the event loop: for the rare moves out of the reserve. */
  syncNow(): void {
    fdatasyncSync(this.#fd)
  }

  /** Makes it a finished segment and goes on in a new file. */
  async rotate(): Promise<void> {
    await this.sync()
    const last = (await segmentIndexes(this.#path)).at(-1) ?? 0
    // Made first: on a full disk it fails here, and nothing has changed.
    const draft = `${this.#path}.next`
    const next = openSync(draft, constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC, 0o600)
    renameSync(this.#path, segmentPath(this.#path, last + 1))
    renameSync(draft, this.#path)
    closeSync(this.#fd)
    this.#fd = next
    this.#size = 0
    await syncFolder(dirname(this.#path))
  }

  close(): void {
    closeSync(this.#fd)
  }
}
