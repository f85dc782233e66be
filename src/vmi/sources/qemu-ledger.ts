import { createHash } from 'node:crypto'
import { lstat, mkdir, readdir, readFile, readlink, rename, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, isAbsolute, join } from 'node:path'
import { CloudAppError } from '../../errors.js'
import { startOf } from './process.js'

const LIMITS = { entries: 1024, bytes: 8192 }

/** Who stopped a VM, and where it can be let run on. */
interface Pause {
  /** The QMP socket, and which one of that path: QEMU makes it anew at each start. */
  readonly socket: string
  readonly file: string
  /** The pid namespace of the holders' numbers. */
  readonly namespace: string
  /** The process that stopped it, and its guard. */
  readonly holders: readonly { readonly pid: number; readonly started: string }[]
}

/**
 * Where the pauses of this user's processes are written down: in the unit's runtime directory, for root in /run/cloudapp, else in
 * the session's runtime directory. On a tmpfs, which ends with the host, as every QEMU does; a user's own, so that nobody else
 * can have a VM of theirs let run on. Undefined for a user who has no such place.
 */
function ledger(): string | undefined {
  const user = process.geteuid?.()
  const { RUNTIME_DIRECTORY: unit, XDG_RUNTIME_DIR: session } = process.env
  // systemd.exec(5): several are separated by colons.
  const [first] = unit?.split(':') ?? []
  const base = first || (user === 0 ? '/run/cloudapp' : session && join(session, 'cloudapp'))
  return base && isAbsolute(base) ? join(base, `pauses-${user}`) : undefined
}

const prefix = (socket: string): string => `${createHash('sha256').update(socket).digest('hex').slice(0, 32)}-`

/** Where a pause of this process by that socket is written down. */
export function entryOf(socket: string): string | undefined {
  const folder = ledger()
  return folder === undefined ? undefined : join(folder, `${prefix(socket)}${process.pid}`)
}

/** The words of a pause's entry, which stay the same from one pause to the next. */
export async function entryText(socket: string, pids: readonly number[]): Promise<string> {
  const holders = await Promise.all(pids.map(async (pid) => ({ pid, started: (await startOf(pid)) ?? '' })))
  const pause: Pause = { socket, file: await fileOf(socket), namespace: await namespace(), holders }
  return JSON.stringify(pause)
}

/** @throws CloudAppError `ERR_CLOUDAPP_SOURCE` */
export async function writeEntry(entry: string, text: string): Promise<void> {
  const folder = dirname(entry)
  try {
    await mkdir(dirname(folder), { recursive: true, mode: 0o755 })
    await mkdir(folder, { mode: 0o700 }).catch((error) => {
      if (error.code !== 'EEXIST') throw error
    })
    await checkFolder(folder)
    // Renamed, so that nobody reads half of it.
    await writeFile(`${entry}.new`, text, { mode: 0o600 })
    await rename(`${entry}.new`, entry)
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    const message = `a VM is paused only once that is written down in ${folder}, for whoever comes if all its holders are killed: ${why}`
    throw new CloudAppError('ERR_CLOUDAPP_SOURCE', message, { cause })
  }
}

export const eraseEntry = (entry: string): Promise<void> => rm(entry, { force: true })

/** A pause that nobody is left to end. */
export interface Orphan {
  readonly entry: string
  readonly socket: string
}

/** The pauses of which all holders are dead and QEMU is not. Entries that mean nothing any more are erased. */
export async function orphans(of?: string): Promise<Orphan[]> {
  const folder = ledger()
  if (folder === undefined) return []
  const names = await list(folder)
  const wanted = names.filter((name) => !name.endsWith('.new') && (of === undefined || name.startsWith(prefix(of))))
  const found: Orphan[] = []
  for (const name of wanted.slice(0, LIMITS.entries)) {
    const entry = join(folder, name)
    const pause = await read(entry)
    if (pause !== undefined && (await held(pause))) continue
    // Without its socket nobody can reach that QEMU any more.
    const reachable = pause !== undefined && pause.file !== '' && (await fileOf(pause.socket)) === pause.file
    if (reachable) found.push({ entry, socket: pause.socket })
    else await eraseEntry(entry)
  }
  return found
}

async function list(folder: string): Promise<string[]> {
  try {
    await checkFolder(folder)
    return await readdir(folder)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return []
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new CloudAppError(
      'ERR_CLOUDAPP_SOURCE',
      `pauses are written down in ${folder}, which can not be read: ${why}`,
      { cause },
    )
  }
}

/** Whoever can write there can have VMs let run on. */
async function checkFolder(folder: string): Promise<void> {
  const info = await lstat(folder)
  const { mode, uid } = info
  if (!info.isDirectory()) throw new Error('it is not a folder')
  if (uid !== process.geteuid?.()) throw new Error('it belongs to another user')
  if ((mode & 0o022) !== 0) throw new Error('others can write to it: chmod go-w it')
}

async function read(entry: string): Promise<Pause | undefined> {
  try {
    if ((await lstat(entry)).size > LIMITS.bytes) return undefined
    const pause: Pause = JSON.parse(await readFile(entry, 'utf8'))
    const { socket, file, namespace, holders } = pause
    const texts = [socket, file, namespace, ...holders.map(({ started }) => started)]
    return texts.every((text) => typeof text === 'string') ? pause : undefined
  } catch {
    // Not one of ours, or erased meanwhile.
    return undefined
  }
}

/** Whether a holder lives, or may live: the numbers of another pid namespace say nothing here. */
async function held({ namespace: of, holders }: Pause): Promise<boolean> {
  if (of !== (await namespace())) return true
  for (const { pid, started } of holders) if ((await startOf(Number(pid))) === started) return true
  return false
}

const namespace = (): Promise<string> => readlink('/proc/self/ns/pid')

/** '' if there is none. */
async function fileOf(socket: string): Promise<string> {
  const info = await stat(socket, { bigint: true }).catch(() => undefined)
  return info === undefined ? '' : `${info.dev}:${info.ino}:${info.birthtimeNs}`
}
