import { open } from 'node:fs/promises'
import { CloudAppError } from '../errors.js'

/**
 * A small text file that the command line names.
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND`, `ERR_CLOUDAPP_INVALID_ARGUMENT`
 */
export async function readTextFile(path: string, limit: number, what: string): Promise<string> {
  try {
    const file = await open(path)
    try {
      const bytes = Buffer.alloc(limit + 1)
      const { bytesRead } = await file.read(bytes, 0, bytes.length, 0)
      if (bytesRead > limit) {
        throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${what} ${path} has more than ${limit} bytes`)
      }
      return bytes.toString('utf8', 0, bytesRead)
    } finally {
      await file.close()
    }
  } catch (cause) {
    if (CloudAppError.is(cause)) throw cause
    const { code } = cause as NodeJS.ErrnoException
    const kind = code === 'ENOENT' ? 'ERR_CLOUDAPP_NOT_FOUND' : 'ERR_CLOUDAPP_INVALID_ARGUMENT'
    throw new CloudAppError(kind, `${what} ${path} can not be read (${code})`, { cause })
  }
}
