import { closeSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs'
import type { GuestOutput, GuestRunOptions } from '../../lib/guest.js'

/** The most one push or pull takes. */
const SIZE = 256 * 2 ** 20
/** Reading or writing that much takes a busy machine this long at most. */
const LIMIT = { timeoutMs: 180_000 }

/** A domain, as far as the mailbox needs one. */
export interface Shell {
  run(script: string, options?: GuestRunOptions): Promise<GuestOutput>
}

/**
 * A file here that is a disk in dom0, and in a guest that asks for it: what goes in or out at once, not a character at a
 * time. There is one, so one domain uses it at a time. Both ends go past their caches: the disk changes under them.
 */
export class Mailbox {
  private queue: Promise<unknown> = Promise.resolve()

  constructor(private readonly file: string) {
    const made = openSync(file, 'wx', 0o600)
    ftruncateSync(made, SIZE)
    closeSync(made)
  }

  /** Writes a file in a domain that has the mailbox as `disk`. */
  push(shell: Shell, disk: string, name: string, content: Uint8Array | string, mode: number): Promise<void> {
    const bytes = Buffer.from(content)
    if (bytes.length > SIZE) throw new Error(`${name} is larger than ${SIZE} bytes`)
    return this.inTurn(async () => {
      const file = openSync(this.file, 'r+')
      try {
        for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at, bytes.length - at, at)
      } finally {
        closeSync(file)
      }
      const blocks = Math.ceil(bytes.length / 65536)
      const read = `dd if=${disk} bs=65536 count=${blocks} iflag=direct 2>/dev/null | head -c ${bytes.length}`
      await shell.run(`${blocks === 0 ? ':' : read} > '${name}' && chmod ${mode.toString(8)} '${name}'`, LIMIT)
    })
  }

  /** Reads a file of a domain that has the mailbox as `disk`. */
  async pull(shell: Shell, disk: string, name: string): Promise<Buffer> {
    return this.inTurn(async () => {
      const size = Number((await shell.run(`stat -c %s '${name}'`)).stdout)
      if (size > SIZE) throw new Error(`${name} has ${size} bytes, more than ${SIZE}`)
      if (size === 0) return Buffer.alloc(0)
      // Whole blocks, as O_DIRECT wants them.
      const write = `dd of=${disk} bs=65536 iflag=fullblock oflag=direct conv=notrunc`
      await shell.run(`dd if='${name}' bs=65536 conv=sync 2>/dev/null | ${write} 2>/dev/null`, LIMIT)
      const bytes = Buffer.alloc(size)
      const file = openSync(this.file, 'r')
      try {
        for (let at = 0; at < size; ) {
          const part = readSync(file, bytes, at, size - at, at)
          if (part === 0) throw new Error(`${at} of ${size} bytes of ${name} came`)
          at += part
        }
      } finally {
        closeSync(file)
      }
      return bytes
    })
  }

  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.queue.then(work)
    this.queue = turn.catch(() => {})
    return turn
  }
}
