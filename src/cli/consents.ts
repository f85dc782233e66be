import { mkdir, readdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { replaceFile } from '../capabilities/files.js'
import { keyId } from '../capabilities/keys.js'
import { type Manifest, readManifest } from '../capabilities/manifest.js'
import { verifyManifest } from '../capabilities/manifest-sign.js'
import { CloudAppError } from '../errors.js'

/** Manifests of one name that are looked at: one for each publisher. */
const MAX_PUBLISHERS = 256

/**
 * What an owner of VMs has consented to: the manifest of each service on each VM as it was last, in a folder that only the owner
 * may write. One file for each VM, name and publisher: `UUID/NAME.KEYID.json`.
 */
export class Consents {
  readonly #folder: string

  constructor(folder: string) {
    this.#folder = folder
  }

  /**
   * What was consented to last under this name on the VM; undefined if nothing was. Of another publisher only if there is none
   * of the same: then somebody else takes the service's place, which is a widening.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_STORE` for a record that is damaged, was changed, or could be by others
   */
  async last(vm: string, { name, publisher }: Manifest): Promise<Manifest | undefined> {
    const folder = this.#of(vm)
    const files = (await filesIn(folder)).filter((file) => file.startsWith(`${name}.`) && file.endsWith('.json'))
    if (files.length > MAX_PUBLISHERS) {
      throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `${folder} knows more than ${MAX_PUBLISHERS} publishers of ${name}`)
    }
    const same = publisher === undefined ? undefined : fileOf(name, publisher)
    const file = files.find((one) => one === same) ?? (await newest(folder, files))
    if (file === undefined) return undefined
    const kept = path.join(folder, file)
    try {
      const manifest = await readManifest(kept)
      verifyManifest(manifest)
      return manifest
    } catch (cause) {
      if (!CloudAppError.is(cause)) throw cause
      const why = `what is kept of your consent can not be believed: ${kept}; remove it to consent anew to all that is asked for`
      throw new CloudAppError('ERR_CLOUDAPP_STORE', why, { cause })
    }
  }

  /** Resolves when it is on the disk. @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` */
  async keep(vm: string, manifest: Manifest): Promise<void> {
    const folder = this.#of(vm)
    try {
      await mkdir(folder, { recursive: true, mode: 0o700 })
    } catch (cause) {
      throw unusable(folder, cause)
    }
    const file = path.join(folder, fileOf(manifest.name, verifyManifest(manifest)))
    await replaceFile(file, `${JSON.stringify(manifest, undefined, 2)}\n`, 0o600)
  }

  /** The uuid comes from a broker, and becomes a part of a path. */
  #of(vm: string): string {
    if (/^[0-9a-f-]{36}$/.test(vm)) return path.join(this.#folder, vm)
    throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', 'the broker names a VM whose uuid is none')
  }
}

const fileOf = (name: string, publisher: `ed25519:${string}`): string => `${name}.${keyId(publisher)}.json`

async function filesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw unusable(folder, cause)
  }
}

async function newest(folder: string, files: readonly string[]): Promise<string | undefined> {
  const dated = await Promise.all(
    files.map(async (file) => ({ file, at: (await stat(path.join(folder, file))).mtimeMs })),
  )
  return dated.sort((a, b) => b.at - a.at)[0]?.file
}

function unusable(folder: string, cause: unknown): CloudAppError {
  const { code } = cause as NodeJS.ErrnoException
  return new CloudAppError(
    'ERR_CLOUDAPP_INVALID_ARGUMENT',
    `the folder of consents ${folder} can not be used (${code})`,
    {
      cause,
    },
  )
}
