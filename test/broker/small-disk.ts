import { execFileSync } from 'node:child_process'
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** A disk of 1 MiB, that can be filled. Mounting needs root. */
export class SmallDisk implements Disposable {
  readonly folder: string

  constructor(folder: string) {
    this.folder = folder
    mkdirSync(folder)
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder])
    chmodSync(folder, 0o755)
  }

  /** Leaves room for not a page more. */
  fill(): void {
    try {
      for (let i = 0; ; i++) writeFileSync(join(this.folder, `fill${i}`), new Uint8Array(4096))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
    }
  }

  [Symbol.dispose](): void {
    execFileSync('umount', ['-l', this.folder])
  }
}
