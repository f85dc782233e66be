import { createHash, randomBytes } from 'node:crypto'
import { channel } from 'node:diagnostics_channel'
import { lstat, mkdir, open, readdir, readFile, rename, rm, stat, utimes } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { profileError } from './errors.js'
import { KNOWN_REVISION } from './known.js'
import { decodeImage, encodeImage, type ImageFacts, type SectionInfo } from './profile.js'

/** Image profiles kept at most, and bytes of all. */
const MAX_PROFILES = 32
const MAX_BYTES = 1024 * 1024 * 1024
const HASH = 32
/** Milliseconds after which an unfinished file is nobody's. */
const STALE = 3_600_000

/** `BUILDID-OFFSET-REVISION.part`: the name alone tells what to look for in RAM. */
const NAME = /^([0-9a-f]{16,128})-([0-9a-f]{1,8})-([0-9a-f]{1,8})\.(image|symbols|types)$/

/** What the cache could not do; published, not thrown: a cache may fail, an attach then makes the profile anew. */
const problems = channel('cloudapp:profile-cache')

/** A cached image, by what must be found in RAM to use it. */
export interface CacheEntry {
  readonly buildId: string
  readonly buildIdOffset: number
  readonly file: string
}

export function sha256(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest()
}

/** `$CLOUDAPP_CACHE`, `$XDG_CACHE_HOME/cloudapp`, or `~/.cache/cloudapp`. */
export function defaultCacheDirectory(): string {
  const { CLOUDAPP_CACHE, XDG_CACHE_HOME } = process.env
  if (CLOUDAPP_CACHE) return CLOUDAPP_CACHE
  return join(XDG_CACHE_HOME || join(homedir(), '.cache'), 'cloudapp')
}

/**
 * Image profiles by build id. Files are written whole and renamed, readable by their owner only, and checked by their
 * hash when read; a directory that somebody else may write to is not used.
 */
export class ProfileCache {
  readonly directory: string

  constructor(directory: string = defaultCacheDirectory()) {
    this.directory = directory
  }

  /** Cached images, the last used first. Empty where there is no usable directory. */
  async list(): Promise<CacheEntry[]> {
    return this.#attempt('list', [], async () => {
      if (!(await this.#usable())) return []
      const entries: { entry: CacheEntry; used: number }[] = []
      for (const name of await readdir(this.directory)) {
        const match = NAME.exec(name)
        if (match === null || match[4] !== 'image' || Number.parseInt(match[3] as string, 16) !== KNOWN_REVISION)
          continue
        const file = join(this.directory, name.slice(0, -'.image'.length))
        const { mtimeMs } = await lstat(`${file}.image`)
        const buildIdOffset = Number.parseInt(match[2] as string, 16)
        entries.push({ entry: { buildId: match[1] as string, buildIdOffset, file }, used: mtimeMs })
      }
      entries.sort((a, b) => b.used - a.used)
      return entries.slice(0, MAX_PROFILES).map(({ entry }) => entry)
    })
  }

  /** The facts of a cached image; undefined (and the entry dropped) if the file is damaged. */
  async load(entry: CacheEntry): Promise<ImageFacts | undefined> {
    const image = await this.#attempt('load', undefined, async () => {
      const bytes = await readFile(`${entry.file}.image`)
      const body = bytes.subarray(HASH)
      if (bytes.length < HASH || !sha256(body).equals(bytes.subarray(0, HASH)))
        throw profileError('cache', `${entry.file}.image is damaged`)
      const image = decodeImage(body)
      if (image.buildId !== entry.buildId || image.buildIdOffset !== entry.buildIdOffset)
        throw profileError('cache', `${entry.file}.image is of another kernel`)
      return image
    })
    if (image === undefined) await this.drop(entry)
    else await this.#attempt('touch', undefined, () => utimes(`${entry.file}.image`, new Date(), new Date()))
    return image
  }

  /** A section, checked against its hash; undefined if it is missing or damaged. */
  async section(entry: CacheEntry, section: SectionInfo): Promise<Uint8Array | undefined> {
    return this.#attempt('section', undefined, async () => {
      const path = `${entry.file}.${section.name}`
      if ((await stat(path)).size !== section.size) throw profileError('cache', `${path} has a wrong size`)
      const bytes = await readFile(path)
      if (sha256(bytes).toString('hex') !== section.sha256) throw profileError('cache', `${path} is damaged`)
      return bytes
    })
  }

  /** Writes an image and its sections; prunes the oldest. An image without a build id is not kept. */
  async save(image: ImageFacts, sections: ReadonlyMap<string, Uint8Array>): Promise<CacheEntry | undefined> {
    if (image.buildId === '') return undefined
    return this.#attempt('save', undefined, async () => {
      await mkdir(this.directory, { recursive: true, mode: 0o700 })
      if (!(await this.#usable())) return undefined
      const name = `${image.buildId}-${image.buildIdOffset.toString(16)}-${KNOWN_REVISION.toString(16)}`
      const file = join(this.directory, name)
      for (const [section, bytes] of sections) await writeWhole(`${file}.${section}`, [bytes])
      const body = encodeImage(image)
      // The image last: it is what makes the entry visible.
      await writeWhole(`${file}.image`, [sha256(body), body])
      await this.#prune()
      return { buildId: image.buildId, buildIdOffset: image.buildIdOffset, file }
    })
  }

  /** Removes an entry. */
  async drop(entry: CacheEntry): Promise<void> {
    await this.#attempt('drop', undefined, async () => {
      for (const part of ['image', 'symbols', 'types']) await rm(`${entry.file}.${part}`, { force: true })
    })
  }

  /** Ours, and nobody else's to write: a planted profile would make an attach read what the planter likes. */
  async #usable(): Promise<boolean> {
    const info = await stat(this.directory).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return undefined
      throw error
    })
    if (info === undefined) return false
    const safe = info.isDirectory() && info.uid === process.geteuid?.() && (info.mode & 0o022) === 0
    if (!safe) throw profileError('cache', `${this.directory} is not a directory that only its owner can write to`)
    return true
  }

  async #prune(): Promise<void> {
    const groups = new Map<string, { bytes: number; used: number; paths: string[] }>()
    for (const name of await readdir(this.directory)) {
      const path = join(this.directory, name)
      if (name.endsWith('.tmp')) await this.#sweep(path)
      if (!NAME.test(name)) continue
      const info = await lstat(path)
      const key = name.slice(0, name.lastIndexOf('.'))
      const group = groups.get(key) ?? { bytes: 0, used: 0, paths: [] }
      group.bytes += info.size
      group.used = Math.max(group.used, info.mtimeMs)
      group.paths.push(path)
      groups.set(key, group)
    }
    let bytes = 0
    let kept = 0
    for (const group of [...groups.values()].sort((a, b) => b.used - a.used)) {
      bytes += group.bytes
      if (kept++ < MAX_PROFILES && bytes <= MAX_BYTES) continue
      for (const path of group.paths) await rm(path, { force: true })
    }
  }

  /** Removes what a writer that was killed left behind. */
  async #sweep(path: string): Promise<void> {
    const { mtimeMs } = await lstat(path)
    if (Date.now() - mtimeMs > STALE) await rm(path, { force: true })
  }

  async #attempt<T>(what: string, otherwise: T, work: () => Promise<T>): Promise<T> {
    try {
      return await work()
    } catch (error) {
      problems.publish({ what, directory: this.directory, error })
      return otherwise
    }
  }
}

async function writeWhole(path: string, parts: readonly Uint8Array[]): Promise<void> {
  const temporary = `${path}.${process.pid}.${randomBytes(6).toString('hex')}.tmp`
  try {
    const file = await open(temporary, 'wx', 0o600)
    try {
      for (const part of parts) await file.writeFile(part)
    } finally {
      await file.close()
    }
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
}
