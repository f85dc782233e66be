import { createHash } from 'node:crypto'
import { closeSync, constants, fdatasyncSync, openSync, readSync, writeSync } from 'node:fs'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'

/** A UTC clock that never goes back, also over a restart. */
export interface Clock {
  /** Milliseconds since 1970 UTC; never less than any value given before from the same file. */
  now(): number
  /** What kept the high-water mark from being written, if anything does. The clock still never goes back meanwhile. */
  readonly fault: Error | undefined
  /** Idempotent. */
  close(): void
}

export interface ClockOptions {
  /** Keeps the high-water mark; made if it is missing. Without it the clock only holds within this process. */
  readonly path?: string
  /** The system's UTC clock in milliseconds, and a monotonic one; for tests. */
  readonly wall?: () => number
  readonly monotonic?: () => number
}

/** How far the mark on disk is ahead of the time given out: a write this often at most. */
const STEP_MS = 5000

/**
 * Opens a clock anchored to UTC once and carried on by the monotonic clock. If the system's clock is set back, ours goes
 * on; if it is ahead of ours (after a suspend, or a correction), ours follows. Before a time past the mark is given out,
 * a later mark is on disk: so a restart with the clock set back starts from the mark, and no token revives.
 *
 * After a restart with a right clock, time may stand still for at most 5 s, until it has caught up with the mark.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` if the file can not be opened or both its copies are damaged.
 */
export function openClock(options: ClockOptions = {}): Clock {
  checkOptions('openClock', options, ['path', 'wall', 'monotonic'])
  const { path, wall = Date.now, monotonic = () => Number(process.hrtime.bigint() / 1_000_000n) } = options
  return new AnchoredClock(path === undefined ? undefined : new MarkFile(path), wall, monotonic)
}

class AnchoredClock implements Clock {
  fault: Error | undefined
  readonly #file: MarkFile | undefined
  readonly #wall: () => number
  readonly #monotonic: () => number
  #mark: number
  #last: number
  /** UTC minus monotonic. */
  #offset: number

  constructor(file: MarkFile | undefined, wall: () => number, monotonic: () => number) {
    this.#file = file
    this.#wall = wall
    this.#monotonic = monotonic
    this.#mark = file?.mark ?? 0
    this.#last = this.#mark
    const utc = Math.trunc(wall())
    // A wall clock just behind the mark is right: the mark runs ahead. One further behind was set back.
    const start = utc >= this.#mark - 2 * STEP_MS ? utc : this.#mark
    this.#offset = start - monotonic()
  }

  now(): number {
    const mono = this.#monotonic()
    const utc = Math.trunc(this.#wall())
    if (utc > mono + this.#offset) this.#offset = utc - mono
    this.#last = Math.max(this.#last, Math.trunc(mono + this.#offset))
    if (this.#last > this.#mark) this.#advance()
    return this.#last
  }

  close(): void {
    this.#file?.close()
  }

  #advance(): void {
    this.#mark = this.#last + STEP_MS
    try {
      this.#file?.write(this.#mark)
      this.fault = undefined
    } catch (error) {
      this.fault = error instanceof Error ? error : new Error(String(error))
    }
  }
}

const SLOT = 64

// Two slots, written in turn and in place: a torn write leaves the other slot, and a full disk is no obstacle.
class MarkFile {
  mark = 0
  #fd: number
  #turn = 0

  constructor(path: string) {
    try {
      this.#fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600)
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `the clock file ${path} can not be opened (${code})`, {
        cause,
      })
    }
    const bytes = Buffer.alloc(2 * SLOT)
    const used = readSync(this.#fd, bytes, 0, bytes.length, 0)
    const slots = [0, 1].map((i) => parseSlot(bytes.toString('latin1', i * SLOT, (i + 1) * SLOT)))
    if (used > 0 && slots.every((slot) => slot === undefined)) {
      closeSync(this.#fd)
      throw new CloudAppError(
        'ERR_CLOUDAPP_INVALID_ARGUMENT',
        `the clock file ${path} is damaged; the time it kept is lost`,
      )
    }
    const [first = 0, second = 0] = slots
    this.mark = Math.max(first, second)
    this.#turn = first >= second ? 1 : 0
    if (used < bytes.length) this.#reserve()
  }

  write(mark: number): void {
    writeSync(this.#fd, slotText(mark), this.#turn * SLOT, 'latin1')
    fdatasyncSync(this.#fd)
    this.mark = mark
    this.#turn = 1 - this.#turn
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd)
    this.#fd = -1
  }

  #reserve(): void {
    writeSync(this.#fd, slotText(this.mark) + slotText(this.mark), 0, 'latin1')
    fdatasyncSync(this.#fd)
  }
}

function slotText(mark: number): string {
  const text = `mark ${mark}`.padEnd(30)
  return `${text} ${createHash('sha256').update(text).digest('hex').slice(0, 32)}\n`
}

function parseSlot(text: string): number | undefined {
  const mark = Number(/^mark (\d{1,16}) /.exec(text)?.[1])
  return Number.isSafeInteger(mark) && slotText(mark) === text ? mark : undefined
}
