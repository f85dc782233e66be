import { type FileHandle, open, readdir, stat } from 'node:fs/promises'
import { basename, dirname } from 'node:path'
import { CloudAppError } from '../../errors.js'
import { AUDIT_LIMITS } from './types.js'

/** A line of a log file. */
export interface Line {
  /** From 1, in its file. */
  readonly number: number
  /** Without the newline; empty if the line was longer than a record can be. */
  readonly bytes: Buffer
  /** False for what stands after the last newline. */
  readonly complete: boolean
  readonly overlong: boolean
  /** Offset of its first byte. */
  readonly offset: number
}

const CHUNK = 64 * 1024

/**
 * The lines of a file, holding no more of it than one line and one chunk. With `untilNul`, the file ends at its first
 * NUL byte (the unused part of a reserve).
 */
export async function* readLines(path: string, options: { untilNul?: boolean } = {}): AsyncGenerator<Line> {
  const file = await openForReading(path)
  try {
    const assembler = new LineAssembler()
    const chunk = Buffer.alloc(CHUNK)
    for (;;) {
      const { bytesRead } = await file.read(chunk, 0, CHUNK, null)
      if (bytesRead === 0) break
      let part = chunk.subarray(0, bytesRead)
      const nul = options.untilNul === true ? part.indexOf(0) : -1
      if (nul >= 0) part = part.subarray(0, nul)
      yield* assembler.feed(part)
      if (nul >= 0) break
    }
    yield* assembler.end()
  } finally {
    await file.close()
  }
}

class LineAssembler {
  #parts: Buffer[] = []
  #length = 0
  #number = 0
  #offset = 0

  feed(chunk: Buffer): Line[] {
    const lines: Line[] = []
    let start = 0
    for (;;) {
      const newline = chunk.indexOf(0x0a, start)
      if (newline < 0) break
      this.#keep(chunk.subarray(start, newline))
      lines.push(this.#take(true))
      start = newline + 1
    }
    this.#keep(chunk.subarray(start))
    return lines
  }

  end(): Line[] {
    return this.#length > 0 ? [this.#take(false)] : []
  }

  #keep(part: Buffer): void {
    // The chunk is read into again, so what is kept is copied; past the bound only the length is.
    if (this.#length <= AUDIT_LIMITS.line) this.#parts.push(Buffer.from(part))
    this.#length += part.length
  }

  #take(complete: boolean): Line {
    const overlong = this.#length > AUDIT_LIMITS.line
    const bytes = overlong ? Buffer.alloc(0) : Buffer.concat(this.#parts)
    const line = { number: ++this.#number, bytes, complete, overlong, offset: this.#offset }
    this.#offset += this.#length + (complete ? 1 : 0)
    this.#parts = []
    this.#length = 0
    return line
  }
}

async function openForReading(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'r')
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    const kind = code === 'ENOENT' ? 'ERR_CLOUDAPP_NOT_FOUND' : 'ERR_CLOUDAPP_AUDIT'
    throw new CloudAppError(kind, `the audit log ${path} can not be read (${code})`, { cause })
  }
}

/** Where the reserve of a log is. */
export function reservePath(path: string): string {
  return `${path}.reserve`
}

/** Name of the `index`-th finished segment. */
export function segmentPath(path: string, index: number): string {
  return `${path}.${String(index).padStart(6, '0')}`
}

/** Indexes of the finished segments of a log, ascending. */
export async function segmentIndexes(path: string): Promise<number[]> {
  const name = basename(path)
  let names: string[]
  try {
    names = await readdir(dirname(path))
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `the folder of the audit log ${path} can not be read`, { cause })
  }
  const found = names.filter((entry) => entry.startsWith(`${name}.`)).map((entry) => entry.slice(name.length + 1))
  return found
    .filter((suffix) => /^\d{6,9}$/.test(suffix))
    .map(Number)
    .sort((a, b) => a - b)
}

/** Every file of a log in the order of its records: finished segments, the live file. */
export async function logFiles(path: string): Promise<string[]> {
  const segments = (await segmentIndexes(path)).map((index) => segmentPath(path, index))
  // A broker killed while it began a segment leaves no live file for a moment.
  const live = segments.length === 0 || (await stat(path).catch(() => undefined)) !== undefined
  return live ? [...segments, path] : segments
}
