import { randomBytes } from 'node:crypto'
import { open, stat, unlink } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import { readBounded, replaceFile } from './files.js'
import { isPublicKey, type PublicKey } from './keys.js'
import { checkVm } from './mint.js'
import type { Ownership } from './verify.js'

/** One VM in the host's register. */
export interface OwnedVm {
  /** Unique on the host: 1 to 64 letters, digits, `.`, `_`, `-`. */
  readonly name: string
  readonly uuid: string
  /** Written anew whenever the VM is created, started or cloned; kept when it migrates. */
  readonly bootNonce: string
  /** Whose VM it is: signs the root block of every token over it. */
  readonly owner: PublicKey
  /** Where the broker finds it, `qemu:/run/vm/web-1.qmp`. Nobody else learns it. */
  readonly source: string
}

const MAX_FILE = 4 * 1024 * 1024
const MAX_VMS = 4096
/** How long one writer of a register waits for another, in ms. */
const LOCK_MS = 5000
const FIELDS = ['name', 'uuid', 'bootNonce', 'owner', 'source'] as const

/**
 * The host's register of who owns which VM, written by the host's administrator. The broker only reads it.
 */
export class OwnerRegister {
  readonly #path: string
  #byUuid = new Map<string, OwnedVm>()
  #byName = new Map<string, OwnedVm>()

  private constructor(path: string) {
    this.#path = path
  }

  /**
   * Reads a register file. A file that others may write is refused: whoever writes it owns every VM.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND`, or `ERR_CLOUDAPP_INVALID_ARGUMENT` naming the entry at fault.
   */
  static async open(path: string): Promise<OwnerRegister> {
    const register = new OwnerRegister(path)
    await register.reload()
    return register
  }

  /** Reads the file again. If it is bad, the register stays as it was. @throws as {@link OwnerRegister.open} */
  async reload(): Promise<void> {
    const vms = parseOwners(await readBounded(this.#path, MAX_FILE, 'the register of owners'), this.#path)
    this.#byUuid = new Map(vms.map((vm) => [vm.uuid, vm]))
    this.#byName = new Map(vms.map((vm) => [vm.name, vm]))
  }

  /** For `verifyToken`. */
  readonly ownerOf = (uuid: string): Ownership | undefined => this.#byUuid.get(uuid)

  byUuid(uuid: string): OwnedVm | undefined {
    return this.#byUuid.get(uuid)
  }

  byName(name: string): OwnedVm | undefined {
    return this.#byName.get(name)
  }

  list(): OwnedVm[] {
    return [...this.#byUuid.values()]
  }
}

/** Writes a register, all or nothing: readers see the old file or the new one. @throws as {@link OwnerRegister.open} */
export async function writeOwners(path: string, vms: readonly OwnedVm[]): Promise<void> {
  const text = registerText(vms)
  parseOwners(text, path)
  await replaceFile(path, text, 0o644)
}

const registerText = (vms: readonly OwnedVm[]): string => `${JSON.stringify({ version: 1, vms }, undefined, 2)}\n`

/**
 * Changes a register file: one writer after the other, and readers see the old file or the new one. The file's mode, owner and
 * group stay, so that a broker who could read it still can; a new one has mode 0644.
 *
 * @param change gives the VMs that are to be for those that are; what it throws leaves the file alone
 * @param options `create`: a file that is not there is an empty register
 * @throws CloudAppError as {@link OwnerRegister.open}, and `ERR_CLOUDAPP_TIMEOUT` if another writer does not end in 5 s
 */
export async function changeOwners(
  path: string,
  change: (vms: readonly OwnedVm[]) => readonly OwnedVm[],
  options: { readonly create?: boolean } = {},
): Promise<void> {
  checkOptions('changeOwners', options, ['create'])
  const unlock = await lock(`${path}.lock`)
  try {
    let text = '{ "version": 1, "vms": [] }'
    let kept: { mode: number; uid: number; gid: number } | undefined
    try {
      text = await readBounded(path, MAX_FILE, 'the register of owners')
      kept = await stat(path)
    } catch (error) {
      if (options.create !== true || !CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) throw error
    }
    const changed = registerText(change(parseOwners(text, path)))
    parseOwners(changed, path)
    await replaceFile(path, changed, kept === undefined ? 0o644 : kept.mode & 0o777, kept)
  } finally {
    await unlock()
  }
}

/** The lock is a file, as git's is: of two who would make it, one does. */
async function lock(path: string): Promise<() => Promise<void>> {
  for (const end = performance.now() + LOCK_MS; ; await sleep(20)) {
    try {
      await (await open(path, 'wx', 0o600)).close()
      return () => unlink(path)
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException
      if (code !== 'EEXIST') {
        const why = `${path} can not be made (${code}): the register is not changed`
        throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', why, { cause })
      }
      if (performance.now() > end) {
        const why = `the register is being changed by another; if none runs, one was killed: remove ${path}`
        throw new CloudAppError('ERR_CLOUDAPP_TIMEOUT', why, { cause })
      }
    }
  }
}

/** A boot nonce for a VM that is being created, started or cloned. */
export function newBootNonce(): string {
  return randomBytes(16).toString('hex')
}

/** Reads the text of a register. @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` */
export function parseOwners(text: string, path = 'the register'): OwnedVm[] {
  const bad = (why: string) => new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${path}: ${why}`)
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${path}: not JSON`, { cause })
  }
  if (!isObject(parsed) || parsed.version !== 1 || !Array.isArray(parsed.vms)) {
    throw bad('it must be { "version": 1, "vms": [ … ] }')
  }
  const unknown = Object.keys(parsed).find((key) => key !== 'version' && key !== 'vms')
  if (unknown !== undefined) throw bad(`unknown field '${unknown.slice(0, 64)}'`)
  if (parsed.vms.length > MAX_VMS) throw bad(`more than ${MAX_VMS} VMs`)
  const seen = new Set<string>()
  return parsed.vms.map((entry: unknown, i) => {
    const vm = parseVm(entry, (why) => bad(`VM ${i}: ${why}`))
    for (const [what, value] of [
      ['name', vm.name],
      ['uuid', vm.uuid],
    ] as const) {
      if (seen.has(`${what} ${value}`)) throw bad(`VM ${i}: the ${what} ${value} is there twice`)
      seen.add(`${what} ${value}`)
    }
    return vm
  })
}

function parseVm(entry: unknown, bad: (why: string) => CloudAppError): OwnedVm {
  if (!isObject(entry)) throw bad('not an object')
  const unknown = Object.keys(entry).find((key) => !FIELDS.includes(key as (typeof FIELDS)[number]))
  if (unknown !== undefined) throw bad(`unknown field '${unknown.slice(0, 64)}'`)
  const text = (field: (typeof FIELDS)[number]): string => {
    const value = entry[field]
    if (typeof value !== 'string' || value === '' || value.length > 4096) throw bad(`'${field}' must be text`)
    return value
  }
  const vm = { name: text('name'), uuid: text('uuid'), bootNonce: text('bootNonce'), source: text('source') }
  const owner = text('owner')
  if (!/^[A-Za-z0-9._-]{1,64}$/.test(vm.name)) throw bad("'name' must be 1 to 64 letters, digits, '.', '_' or '-'")
  if (!isPublicKey(owner)) throw bad("'owner' must be a public key, ed25519:…")
  try {
    checkVm(vm)
  } catch (cause) {
    throw bad(cause instanceof Error ? cause.message : String(cause))
  }
  return { ...vm, owner }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
