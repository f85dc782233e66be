import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import { writeNewFile } from './files.js'
import { KeyPair, keyId, type PublicKey, parsePublicKey } from './keys.js'

const MAX_FILE = 4096
/** What errors call one. */
const KEY_FILE = 'the key file'

/** What `cloudapp keys` prints about a key. */
export interface KeyDescription {
  readonly path: string
  readonly publicKey: PublicKey
  /** @see keyId */
  readonly id: string
}

/**
 * Makes a key pair: the private key in `path` (PEM, PKCS #8, mode 0600), the public key as text in `path`.pub. An
 * existing file is never overwritten.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` if `path` exists or can not be written.
 */
export async function createKeyFile(path: string): Promise<KeyDescription> {
  const pair = KeyPair.generate()
  await saveKey(path, pair)
  await writeNewFile(`${path}.pub`, `${pair.publicKey}\n`, 0o644, KEY_FILE)
  return { path, publicKey: pair.publicKey, id: keyId(pair.publicKey) }
}

/** Writes a private key to a new file with mode 0600. @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` */
export async function saveKey(path: string, pair: KeyPair): Promise<void> {
  await writeNewFile(path, pair.exportPem(), 0o600, KEY_FILE)
}

/**
 * Loads a private key. A file that the group or others may read, or that belongs to another user, is refused, as ssh
 * does: such a key is no secret.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND`, or `ERR_CLOUDAPP_INVALID_ARGUMENT` with what is wrong and how to mend it.
 */
export async function loadKey(path: string): Promise<KeyPair> {
  return KeyPair.fromPem(await readKeyFile(path, true))
}

/**
 * A public key, from its text, from a file with its text, or from a private key file.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND`, `ERR_CLOUDAPP_INVALID_ARGUMENT`
 */
export async function loadPublicKey(textOrPath: string): Promise<PublicKey> {
  if (textOrPath.startsWith('ed25519:')) return parsePublicKey(textOrPath)
  const text = await readKeyFile(textOrPath, false)
  if (!text.startsWith('-----BEGIN')) return parsePublicKey(text.trim())
  return (await loadKey(textOrPath)).publicKey
}

/** What a key file holds, without its secret. @throws as {@link loadPublicKey} */
export async function describeKey(textOrPath: string): Promise<KeyDescription> {
  const publicKey = await loadPublicKey(textOrPath)
  return { path: textOrPath, publicKey, id: keyId(publicKey) }
}

/** Loads the private key at `path`, or makes it if there is none and `create` is set. */
export async function openKey(path: string, options?: { readonly create?: boolean }): Promise<KeyPair> {
  checkOptions('openKey', options, ['create'])
  try {
    return await loadKey(path)
  } catch (error) {
    if (options?.create !== true || !CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) throw error
  }
  await createKeyFile(path)
  return loadKey(path)
}

/**
 * The secret in `path`, a line of text that only its owner may read; a new random one, with mode 0600, if there is no file.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT`
 */
export async function openSecret(path: string): Promise<string> {
  try {
    return (await readKeyFile(path, true)).trim()
  } catch (error) {
    if (!CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) throw error
  }
  const secret = randomBytes(32).toString('base64url')
  await writeNewFile(path, `${secret}\n`, 0o600, KEY_FILE)
  return secret
}

async function readKeyFile(path: string, secret: boolean): Promise<string> {
  let file: FileHandle
  try {
    // Not blocking: a FIFO in place of a key must not hang us.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code
    const what = code === 'ENOENT' ? 'ERR_CLOUDAPP_NOT_FOUND' : 'ERR_CLOUDAPP_INVALID_ARGUMENT'
    throw new CloudAppError(what, `the key file ${path} can not be opened (${code})`, { cause })
  }
  try {
    const stat = await file.stat()
    if (!stat.isFile() || stat.size > MAX_FILE) throw invalid(`${path} is no key file`)
    if (secret && (stat.mode & 0o077) !== 0) {
      const mode = (stat.mode & 0o777).toString(8).padStart(4, '0')
      throw invalid(
        `the private key ${path} may be read by others (mode ${mode}); make it safe with: chmod 600 ${path}`,
      )
    }
    if (secret && process.getuid !== undefined && stat.uid !== process.getuid() && stat.uid !== 0) {
      throw invalid(`the private key ${path} belongs to user ${stat.uid}, who could change it`)
    }
    const bytes = Buffer.alloc(MAX_FILE)
    const { bytesRead } = await file.read(bytes, 0, MAX_FILE, 0)
    return bytes.toString('utf8', 0, bytesRead)
  } finally {
    await file.close()
  }
}

function invalid(message: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', message)
}
