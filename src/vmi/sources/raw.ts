import { basename } from 'node:path'
import { checkOptions } from '../../options.js'
import { LocalMemory, type PauseState, type RamRegion } from '../local.js'
import { LocalVm } from './local-vm.js'

export interface RawOptions {
  /** The VM's name; the file's by default. */
  readonly name?: string
  /** Where parts of the file lie in guest-physical memory; without, offset = address. */
  readonly regions?: readonly RamRegion[]
  /**
   * The file does not change while it is open (a dump): results count as consistent, and page tables may be cached from
   * call to call. False by default, as the file may be the RAM of a running VM.
   */
  readonly frozen?: boolean
  /** Opens the file for writing too. */
  readonly writable?: boolean
}

const OPTIONS = ['name', 'regions', 'frozen', 'writable'] as const
const FROZEN: PauseState = { paused: () => true, generation: () => 0 }

/**
 * Opens a file of raw guest-physical memory: a dump, or the RAM file of a running VM.
 *
 * A file says nothing about who it is. `identity.uuid` is the nil UUID (RFC 9562, 5.9) and `identity.bootNonce` all
 * zeros for every raw source: they identify no VM, and no right can be granted over one. There are no vCPUs and no
 * `pause`.
 *
 * @returns The VM; the caller closes it.
 * @throws CloudAppError `ERR_CLOUDAPP_SOURCE` if the file can not be opened; `ERR_CLOUDAPP_INVALID_ARGUMENT` for
 *   overlapping regions; `ERR_CLOUDAPP_NATIVE` without the native library.
 */
export async function openRaw(path: string, options: RawOptions = {}): Promise<LocalVm> {
  checkOptions('openRaw', options, OPTIONS)
  const memory = LocalMemory.open({
    path,
    ...(options.regions === undefined ? {} : { regions: options.regions }),
    ...(options.writable === undefined ? {} : { writable: options.writable }),
    ...(options.frozen === true ? { pause: FROZEN } : {}),
  })
  const identity = {
    name: options.name ?? basename(path),
    uuid: '00000000-0000-0000-0000-000000000000',
    bootNonce: '0'.repeat(32),
  }
  return new LocalVm({ identity, memory })
}
