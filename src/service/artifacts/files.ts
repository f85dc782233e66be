import { createHash, randomUUID } from 'node:crypto'
import { readdirSync, rmSync, statSync } from 'node:fs'
import { type FileHandle, mkdir, open, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { syncFolder } from '../../capabilities/files.js'
import { CloudAppError } from '../../errors.js'

/** Bytes of one artifact. */
export const ARTIFACT_BYTES = 64 * 1024 * 1024

/** What the files need to know of the findings that name them. */
export interface ArtifactIndex {
  hasArtifact(digest: string): boolean
  /** Lets go of one artifact, the one that is to be missed least; undefined if there is none. */
  dropOldestArtifact(): string | undefined
}

const FILE = /^[0-9a-f]{64}$/

/**
 * Evidence as files named by the SHA-256 of their bytes, in a folder beside the store. The same bytes are kept once. A file
 * that no finding names is removed; when there is no room, the evidence missed least makes it.
 */
export class ArtifactFiles {
  readonly #folder: string
  readonly #index: ArtifactIndex
  readonly #maxBytes: number
  /** Bytes of each file, by digest without its prefix. */
  readonly #files = new Map<string, number>()
  /** Digests that were put and whose finding is not stored yet. */
  readonly #pinned = new Map<string, number>()
  #total = 0

  /** Reads what is there and removes what no finding names. Throws ERR_CLOUDAPP_STORE. */
  constructor(folder: string, index: ArtifactIndex, maxBytes: number) {
    this.#folder = folder
    this.#index = index
    this.#maxBytes = maxBytes
    this.#sweep()
  }

  /** Bytes of all files. */
  get total(): number {
    return this.#total
  }

  /**
   * Keeps bytes, durably, up to {@link ARTIFACT_BYTES}; more are not read. The file stays until {@link settled} is called,
   * and from then on as long as a finding names it. Throws ERR_CLOUDAPP_STORE, and what the source throws.
   */
  async put(data: Uint8Array | AsyncIterable<Uint8Array>): Promise<{
    readonly digest: string
    readonly bytes: number
    readonly truncated: boolean
  }> {
    const draft = join(this.#folder, `${randomUUID()}.part`)
    const hash = createHash('sha256')
    let bytes = 0
    let truncated = false
    try {
      await stored('written', () => mkdir(this.#folder, { recursive: true, mode: 0o700 }))
      const file = await stored('written', () => open(draft, 'wx', 0o600))
      try {
        for await (const chunk of chunks(data)) {
          const part = chunk.subarray(0, ARTIFACT_BYTES - bytes)
          if (part.length > 0) {
            hash.update(part)
            await stored('written', () => writeAll(file, part))
            bytes += part.length
          }
          truncated = part.length < chunk.length
          if (truncated) break
        }
        await stored('written', () => file.sync())
      } finally {
        await file.close()
      }
      const name = hash.digest('hex')
      this.#pinned.set(name, (this.#pinned.get(name) ?? 0) + 1)
      try {
        if (this.#files.has(name)) await rm(draft)
        else {
          this.#makeRoom(bytes)
          await stored('written', () => rename(draft, join(this.#folder, name)))
          this.#files.set(name, bytes)
          this.#total += bytes
          await stored('written', () => syncFolder(this.#folder))
        }
      } catch (error) {
        this.settled([`sha256:${name}`])
        throw error
      }
      return { digest: `sha256:${name}`, bytes, truncated }
    } catch (error) {
      await rm(draft, { force: true })
      throw error
    }
  }

  /** The findings of artifacts that were put are stored, or will not be. */
  settled(digests: readonly string[]): void {
    for (const digest of digests) {
      const name = digest.slice('sha256:'.length)
      const holders = (this.#pinned.get(name) ?? 0) - 1
      if (holders > 0) this.#pinned.set(name, holders)
      else this.#pinned.delete(name)
    }
    this.drop(digests)
  }

  /** Removes the files of those digests that no finding names. */
  drop(digests: readonly string[]): void {
    for (const digest of digests) {
      const name = digest.slice('sha256:'.length)
      const bytes = this.#files.get(name)
      if (bytes === undefined || this.#pinned.has(name) || this.#index.hasArtifact(digest)) continue
      rmSync(join(this.#folder, name), { force: true })
      this.#files.delete(name)
      this.#total -= bytes
    }
  }

  /** `length` bytes from `at` on; fewer at the end. Throws ERR_CLOUDAPP_NOT_FOUND, ERR_CLOUDAPP_STORE. */
  async read(digest: string, at: number, length: number): Promise<Uint8Array> {
    const name = digest.slice('sha256:'.length)
    const bytes = this.#files.get(name)
    if (bytes === undefined) throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', 'The artifact is not kept any more')
    const file = await stored('read', () => open(join(this.#folder, name)))
    try {
      const buffer = new Uint8Array(Math.max(0, Math.min(length, bytes - at)))
      let used = 0
      while (used < buffer.length) {
        const { bytesRead } = await stored('read', () => file.read(buffer, used, buffer.length - used, at + used))
        if (bytesRead === 0) throw new CloudAppError('ERR_CLOUDAPP_STORE', `The artifact ${digest} is damaged`)
        used += bytesRead
      }
      return buffer
    } finally {
      await file.close()
    }
  }

  #makeRoom(bytes: number): void {
    while (this.#total + bytes > this.#maxBytes) {
      const digest = this.#index.dropOldestArtifact()
      if (digest === undefined) {
        throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `Artifacts are kept up to ${this.#maxBytes} bytes in all`, {
          details: { limit: 'artifactBytes', most: this.#maxBytes },
        })
      }
      this.drop([digest])
    }
  }

  #sweep(): void {
    let names: string[]
    try {
      names = readdirSync(this.#folder)
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return
      throw storeFailure('read', cause)
    }
    for (const name of names) {
      const path = join(this.#folder, name)
      if (FILE.test(name) && this.#index.hasArtifact(`sha256:${name}`)) {
        const { size } = statSync(path)
        this.#files.set(name, size)
        this.#total += size
      } else if (FILE.test(name) || name.endsWith('.part')) rmSync(path, { force: true })
    }
  }
}

async function* chunks(data: Uint8Array | AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  if (data instanceof Uint8Array) {
    yield data
    return
  }
  for await (const chunk of data) {
    if (!(chunk instanceof Uint8Array)) {
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'artifact: data must be bytes or a stream of bytes')
    }
    yield chunk
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) at += (await file.write(bytes, at)).bytesWritten
}

async function stored<T>(what: 'read' | 'written', work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (cause) {
    throw storeFailure(what, cause)
  }
}

function storeFailure(what: string, cause: unknown): CloudAppError {
  if (CloudAppError.is(cause)) return cause
  const { code = 'unknown' } = cause as NodeJS.ErrnoException
  return new CloudAppError('ERR_CLOUDAPP_STORE', `Artifacts can not be ${what} (${code})`, {
    cause,
    details: { reason: code },
  })
}
