import { constants, existsSync } from 'node:fs'
import { mkdir, open, stat } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import * as v from 'valibot'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'

/** Where files of services are looked for: $CLOUDAPP_DISCOVERY, or this. */
const FOLDER = '/run/cloudapp/services'
const LIMIT = 16 * 1024

const schema = v.strictObject({
  name: v.pipe(v.string(), v.maxLength(63)),
  endpoint: v.pipe(
    v.string(),
    v.maxLength(4096),
    v.regex(
      /^(?:unix:\/.+|tls:.+#ed25519:.+|vchan:[a-z0-9/-]+$)/,
      'must be unix:/path, tls:HOST:PORT#ed25519:… or vchan:NAME',
    ),
  ),
})

/** How to reach a service domain. */
export interface Endpoint {
  readonly name: string
  /** `unix:/path`, `tls:HOST:PORT#ed25519:…` or `vchan:NAME` */
  readonly endpoint: string
}

export interface DiscoverOptions {
  /**
   * A folder of `NAME.json` files, or one such file; $CLOUDAPP_DISCOVERY, or /run/cloudapp/services, by default. Without it,
   * what no file announces is looked for in xenstore, where there is one.
   */
  readonly from?: string
  /** Takes the word of files that others than root can write. For tests and development only. */
  readonly trustAnyOwner?: boolean
}

/**
 * Finds a service domain by name. Only what root wrote is believed: the file and every folder above it must belong to root
 * and be writable by nobody else, or any program in the VM could pose as a service domain. In a domain of Xen also what dom0
 * wrote in xenstore, where nobody else can: the endpoint is then `vchan:NAME`.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` if no such service is announced; `ERR_CLOUDAPP_DENIED` if the
 *   announcement can not be trusted (`details.path` and the reason); `ERR_CLOUDAPP_INVALID_ARGUMENT` if it is malformed.
 */
export async function discover(name: string, options: DiscoverOptions = {}): Promise<Endpoint> {
  checkOptions('discover', options, ['from', 'trustAnyOwner'])
  if (typeof name !== 'string' || !/^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/.test(name)) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'discover: a name is a lower-case word with dashes')
  }
  const from = resolve(options.from ?? process.env.CLOUDAPP_DISCOVERY ?? FOLDER)
  const path = from.endsWith('.json') ? from : join(from, `${name}.json`)
  let text: string
  try {
    text = await readTrusted(path, name, options.trustAnyOwner ?? false)
  } catch (error) {
    const elsewhere = options.from === undefined && CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')
    if (elsewhere && (await inXenstore(name))) return { name, endpoint: `vchan:${name}` }
    throw error
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${path} is no JSON`, { cause })
  }
  const result = v.safeParse(schema, value)
  if (!result.success) {
    const issue = result.issues[0]
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${path}: ${v.getDotPath(issue) ?? ''} ${issue.message}`)
  }
  if (result.output.name !== name) {
    throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `${path} announces ${result.output.name}, not ${name}`)
  }
  return result.output
}

async function inXenstore(name: string): Promise<boolean> {
  if (!['/run/xenstored/socket', '/dev/xen/xenbus'].some((path) => existsSync(path))) return false
  // Imported here: only in a domain of Xen is any of it needed.
  const { isAnnounced } = await import('../transport/xen/service.js')
  return isAnnounced(name)
}

/**
 * Announces a service domain where {@link discover} looks: for the administrator of the client VM, who is root there.
 * Returns the file's path.
 */
export async function announce(endpoint: Endpoint, options: { readonly folder?: string } = {}): Promise<string> {
  checkOptions('announce', options, ['folder'])
  const value = v.parse(schema, endpoint)
  const folder = resolve(options.folder ?? process.env.CLOUDAPP_DISCOVERY ?? FOLDER)
  await mkdir(folder, { recursive: true, mode: 0o755 })
  const path = join(folder, `${value.name}.json`)
  // Imported here: what only discovers and connects loads no more than that.
  const { replaceFile } = await import('../capabilities/files.js')
  await replaceFile(path, `${JSON.stringify(value)}\n`, 0o644)
  return path
}

async function readTrusted(path: string, name: string, anyOwner: boolean): Promise<string> {
  let file: Awaited<ReturnType<typeof open>>
  try {
    // O_NONBLOCK: a FIFO in its place must not hang the client.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'EACCES') {
      throw new CloudAppError('ERR_CLOUDAPP_DENIED', `${path} can not be read`, { cause, details: { path } })
    }
    throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `No service ${name} is announced (looked for ${path})`, { cause })
  }
  try {
    const found = await file.stat()
    if (!found.isFile() || found.size > LIMIT) {
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${path} is no file of at most ${LIMIT} bytes`)
    }
    if (!anyOwner) {
      assertRoots(path, found)
      for (let folder = dirname(path); ; folder = dirname(folder)) {
        assertRoots(folder, await stat(folder))
        if (folder === dirname(folder)) break
      }
    }
    const bytes = Buffer.alloc(LIMIT)
    const { bytesRead } = await file.read(bytes, 0, LIMIT, 0)
    return bytes.toString('utf8', 0, bytesRead)
  } finally {
    await file.close()
  }
}

function assertRoots(path: string, { uid, mode }: { uid: number; mode: number }): void {
  // In a sticky folder (/tmp) others can not replace what root made.
  const sticky = (mode & 0o041000) === 0o041000
  const why = uid !== 0 ? 'does not belong to root' : (mode & 0o022) !== 0 && !sticky ? 'can be written by others' : ''
  if (why === '') return
  throw new CloudAppError('ERR_CLOUDAPP_DENIED', `${path} ${why}: what it announces is not believed`, {
    details: { path, reason: why },
  })
}
