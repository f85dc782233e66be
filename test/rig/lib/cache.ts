import { createHash } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { ownStamp, stampAlive } from './process.js'
import type { RigOptions } from './types.js'

/** The project's root. */
export const projectRoot = fileURLToPath(new URL('../../../', import.meta.url))

/** Where everything the rig builds is kept; git-ignored, can be deleted at any time no VM runs. */
export const cacheRoot = path.join(projectRoot, '.cache', 'rig')

/** A short key of any number of strings, byte arrays or JSON values. */
export function keyOf(...inputs: readonly unknown[]): string {
  const hash = createHash('sha256')
  for (const input of inputs) {
    const bytes = input instanceof Uint8Array ? input : Buffer.from(JSON.stringify(input) ?? 'undefined')
    hash.update(`${bytes.length}:`).update(bytes)
  }
  return hash.digest('hex').slice(0, 16)
}

/** The key of a file's content. */
export const fileKey = (file: string): string => keyOf(readFileSync(file))

/**
 * A folder of the cache, made by `build` only if it is not there. `build` fills a temporary folder that is then renamed, so a
 * build that was cut off leaves nothing that looks done; two processes that want the same one build it once.
 */
export async function cached(
  name: string,
  key: string,
  build: (folder: string) => Promise<void>,
  options: RigOptions = {},
): Promise<string> {
  const folder = path.join(cacheRoot, `${name}-${key}`)
  if (existsSync(folder)) return touched(folder)
  mkdirSync(cacheRoot, { recursive: true })
  const lock = `${folder}.lock`
  const deadline = Date.now() + 1_800_000
  for (let told = false; !takeLock(lock); told = true) {
    options.signal?.throwIfAborted()
    if (Date.now() > deadline) throw new Error(`Another process has held ${lock} for 30 minutes`)
    if (!told) options.progress?.(`waiting for another process that is building ${name}`)
    await delay(200)
  }
  try {
    if (existsSync(folder)) return touched(folder)
    const partial = `${folder}.partial`
    rmSync(partial, { recursive: true, force: true })
    mkdirSync(partial)
    await build(partial)
    renameSync(partial, folder)
    dropUnused(name)
    return folder
  } finally {
    rmSync(lock, { force: true })
  }
}

/** What was not wanted for so long is another version's. */
const UNUSED = 30 * 24 * 3_600_000

/** Removes the folders of a name that nobody wanted for long: every change of what they are built from leaves one. */
function dropUnused(name: string): void {
  for (const entry of readdirSync(cacheRoot)) {
    if (!entry.startsWith(`${name}-`) || !/^[0-9a-f]{16}$/.test(entry.slice(name.length + 1))) continue
    const folder = path.join(cacheRoot, entry)
    const { mtimeMs } = statSync(folder, { throwIfNoEntry: false }) ?? { mtimeMs: Date.now() }
    if (Date.now() - mtimeMs > UNUSED) rmSync(folder, { recursive: true, force: true })
  }
}

function touched(folder: string): string {
  utimesSync(folder, new Date(), new Date())
  return folder
}

function takeLock(lock: string): boolean {
  for (let attempt = 0; attempt < 2; attempt++) {
    try {
      writeFileSync(lock, ownStamp(), { flag: 'wx' })
      return true
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    }
    try {
      const stamp = readFileSync(lock, 'utf8')
      if (stamp === '' || stampAlive(stamp)) return false
      rmSync(lock, { force: true })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
  }
  return false
}
