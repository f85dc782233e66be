import { constants } from 'node:fs'
import { type FileHandle, open, rename, unlink } from 'node:fs/promises'
import { dirname } from 'node:path'
import { CloudAppError } from '../errors.js'

/**
 * Reads a small file whose content is believed: others must not be able to write it, and it is not longer than `limit`.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND`, `ERR_CLOUDAPP_INVALID_ARGUMENT`
 */
export async function readBounded(path: string, limit: number, what: string): Promise<string> {
  let file: FileHandle
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    const kind = code === 'ENOENT' ? 'ERR_CLOUDAPP_NOT_FOUND' : 'ERR_CLOUDAPP_INVALID_ARGUMENT'
    throw new CloudAppError(kind, `${what} ${path} can not be opened (${code})`, { cause })
  }
  try {
    const stat = await file.stat()
    const bad = (why: string) => new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${what} ${path} ${why}`)
    if (!stat.isFile()) throw bad('is no file')
    if (stat.size > limit) throw bad(`has more than ${limit} bytes`)
    if ((stat.mode & 0o022) !== 0) throw bad(`may be written by others; make it safe with: chmod go-w ${path}`)
    const bytes = Buffer.alloc(limit + 1)
    let used = 0
    while (used <= limit) {
      const { bytesRead } = await file.read(bytes, used, bytes.length - used, used)
      if (bytesRead === 0) break
      used += bytesRead
    }
    if (used > limit) throw bad(`has more than ${limit} bytes`)
    return bytes.toString('utf8', 0, used)
  } finally {
    await file.close()
  }
}

/**
 * Replaces a file so that a reader, or a crash, finds the old content or the new and nothing between.
 *
 * @param owner whose the new file is; the caller's if absent
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` with what kept it from being written
 */
export async function replaceFile(
  path: string,
  text: string,
  mode: number,
  owner?: { readonly uid: number; readonly gid: number },
): Promise<void> {
  const draft = `${path}.${process.pid}.new`
  try {
    // A link somebody left under that name is not followed.
    await unlink(draft).catch(() => undefined)
    const file = await open(draft, 'wx', mode)
    try {
      await file.writeFile(text)
      if (owner !== undefined) await file.chown(owner.uid, owner.gid)
      await file.chmod(mode)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(draft, path)
  } catch (cause) {
    await unlink(draft).catch(() => undefined)
    const { code } = cause as NodeJS.ErrnoException
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${path} can not be written (${code})`, { cause })
  }
  await syncFolder(dirname(path))
}

/**
 * Writes a file that is not there yet; when this resolves, it outlasts a power failure.
 *
 * @param what the file, for the error
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` if it exists, or with what kept it from being written
 */
export async function writeNewFile(
  path: string,
  content: string | Uint8Array,
  mode: number,
  what: string,
): Promise<void> {
  const bad = (cause: unknown, made: boolean) => {
    const { code } = cause as NodeJS.ErrnoException
    const why = !made && code === 'EEXIST' ? 'exists already and is not overwritten' : `can not be written (${code})`
    return new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${what} ${path} ${why}`, { cause })
  }
  const file = await open(path, 'wx', mode).catch((cause) => {
    throw bad(cause, false)
  })
  try {
    await file.writeFile(content)
    await file.sync()
    await syncFolder(dirname(path))
  } catch (cause) {
    // Half a file is worse than none.
    await unlink(path).catch(() => undefined)
    throw bad(cause, true)
  } finally {
    await file.close()
  }
}

/** Makes a rename or a new file last over a power failure. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
