import { closeSync, constants, fdatasyncSync, fstatSync, openSync, readSync, writeSync } from 'node:fs'
import { reservePath } from './lines.js'

/**
 * Space set aside for the records that must be written also on a full disk. It is written in place, so that nobody can
 * take the space in between; what is in it belongs after the live file's last record until it is moved there.
 */
export class Reserve {
  readonly #fd: number
  readonly #size: number
  #used = 0

  private constructor(fd: number, size: number) {
    this.#fd = fd
    this.#size = size
  }

  /** Opens the reserve of the log at `path`; makes it, or makes it larger, if need be. */
  static open(path: string, size: number): Reserve {
    const fd = openSync(reservePath(path), constants.O_RDWR | constants.O_CREAT, 0o600)
    const has = fstatSync(fd).size
    // Zeros are written, not only a length set: a hole is no space.
    if (has < size) writeAll(fd, Buffer.alloc(size - has), has)
    fdatasyncSync(fd)
    const reserve = new Reserve(fd, Math.max(has, size))
    const content = reserve.#content().length
    reserve.#used = reserve.lines().length
    // A torn line was never acknowledged; nothing of it may stand behind the next one.
    if (content > reserve.#used) writeAll(fd, Buffer.alloc(content - reserve.#used), reserve.#used)
    return reserve
  }

  get used(): number {
    return this.#used
  }

  /** The complete lines in it. What a crash tore off was never acknowledged. */
  lines(): Buffer {
    const content = this.#content()
    return content.subarray(0, content.lastIndexOf(0x0a) + 1)
  }

  /** Adds lines, on the disk when it returns. False if they do not fit. */
  add(lines: Buffer): boolean {
    if (this.#used + lines.length > this.#size) return false
    writeAll(this.#fd, lines, this.#used)
    fdatasyncSync(this.#fd)
    this.#used += lines.length
    return true
  }

  /** Empties it, once its lines are in the log. */
  clear(): void {
    if (this.#used === 0) return
    writeAll(this.#fd, Buffer.alloc(this.#used), 0)
    fdatasyncSync(this.#fd)
    this.#used = 0
  }

  close(): void {
    closeSync(this.#fd)
  }

  #content(): Buffer {
    const bytes = Buffer.alloc(this.#size)
    let used = 0
    while (used < bytes.length) {
      const got = readSync(this.#fd, bytes, used, bytes.length - used, used)
      if (got === 0) break
      used += got
    }
    const nul = bytes.indexOf(0)
    return nul < 0 ? bytes : bytes.subarray(0, nul)
  }
}

/** Writes every byte or throws. */
export function writeAll(fd: number, bytes: Uint8Array, at: number): void {
  let done = 0
  while (done < bytes.length) done += writeSync(fd, bytes, done, bytes.length - done, at + done)
}
