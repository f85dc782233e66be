import { isAbsolute, resolve } from 'node:path'
import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import { LocalMemory } from '../local.js'
import { LocalVm } from './local-vm.js'
import { qemuIdentity } from './qemu-identity.js'
import { ramRegions } from './qemu-map.js'
import { QemuPause } from './qemu-pause.js'
import { recoverOpened } from './qemu-recover.js'
import { QemuVcpus } from './qemu-vcpus.js'
import { QmpClient } from './qmp.js'

export interface QemuOptions {
  readonly signal?: AbortSignal
  /** How long QEMU may take for one answer, in ms; 10 s by default. */
  readonly timeoutMs?: number
  /** The boot nonce in the host's register; without, one is derived (see {@link openQemu}). 32 hexadecimal digits. */
  readonly bootNonce?: string
  /** Opens the RAM file for writing too. */
  readonly writable?: boolean
  /**
   * Reads MSR LSTAR, which QEMU shows nowhere else, out of a device state it saves; the VM stands still for that, about a
   * millisecond a call of `registers()`. True by default.
   */
  readonly deviceState?: boolean
}

const OPTIONS = ['signal', 'timeoutMs', 'bootNonce', 'writable', 'deviceState'] as const

/**
 * Opens a running QEMU VM by its QMP socket (`-qmp unix:PATH,server=on,wait=off`). QEMU must have been started with its
 * RAM in a file both can open: `-object memory-backend-file,id=ram0,mem-path=FILE,size=SIZE,share=on -machine
 * …,memory-backend=ram0`. QEMU serves one client of a QMP socket at a time: give this one its own.
 *
 * The identity's boot nonce is the host's register's, where there is one. Otherwise it is derived from what changes with
 * each start of QEMU: the host's boot id and the start time of QEMU's process, or, where that can not be seen, the birth
 * of the QMP socket. It stays the same over a reset of the guest, and does not survive a migration.
 *
 * `pause()` scopes nest; a VM that somebody else had paused stays so after them. While one is open, a small guard process
 * stands by that lets the VM run on if this process dies; a VM whose holder and guard were killed at once is let run on when
 * it is opened again. A reset of the guest ends the handle, as does the end of QEMU.
 *
 * @param path the QMP socket.
 * @returns The VM; the caller closes it.
 * @throws CloudAppError `ERR_CLOUDAPP_SOURCE` (no QEMU there, or its RAM can not be opened), `ERR_CLOUDAPP_PROTOCOL` (what
 *   answers is not QEMU), `ERR_CLOUDAPP_UNSUPPORTED` (RAM not in one shared file), `ERR_CLOUDAPP_TIMEOUT` (the socket has another
 *   client), `ERR_CLOUDAPP_ABORTED`.
 */
export async function openQemu(path: string, options: QemuOptions = {}): Promise<LocalVm> {
  checkOptions('openQemu', options, OPTIONS)
  const { timeoutMs, signal } = options
  if (options.bootNonce !== undefined && !/^[0-9a-f]{32}$/.test(options.bootNonce)) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'bootNonce must be 32 hexadecimal digits in lower case')
  }
  // The ledger and the guard, which runs elsewhere, go by the path.
  const qmp = await QmpClient.connect(resolve(path), {
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
    ...(signal === undefined ? {} : { signal }),
  })
  const onAbort = (): void => qmp.close()
  signal?.addEventListener('abort', onAbort, { once: true })
  try {
    return await attach(qmp, options)
  } catch (error) {
    qmp.close()
    if (signal?.aborted) throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'opening the VM was aborted', { cause: error })
    throw error
  } finally {
    signal?.removeEventListener('abort', onAbort)
  }
}

async function attach(qmp: QmpClient, options: QemuOptions): Promise<LocalVm> {
  const identity = await qemuIdentity(qmp, options.bootNonce)
  const backend = await ramBackend(qmp)
  const regions = ramRegions(await qmp.human('info mtree -f'), backend.names, backend.size)
  await recoverOpened(qmp)
  const pause = await QemuPause.open(qmp)
  const memory = LocalMemory.open({
    path: backend.path,
    regions: regions.map((region) => ({ ...region, offset: region.offset + backend.offset })),
    writable: options.writable ?? false,
    pause,
  })
  const vcpus = new QemuVcpus(qmp, pause, options.deviceState ?? true)
  const vm = new LocalVm({
    identity,
    memory,
    vcpus,
    pause: () => pause.hold(),
    release: async () => {
      try {
        await pause.close()
      } finally {
        qmp.close()
      }
    },
  })
  // By whom it ends, the handle's close() reports; here nobody waits for it.
  const end = (error: unknown): void => {
    const reason = CloudAppError.is(error) ? error : gone(identity.name, error)
    vm.end(reason).catch(() => {})
  }
  qmp.onEvent(({ event }) => {
    if (event === 'RESET') end(reset(identity.name))
  })
  qmp.closed.addEventListener('abort', () => end(qmp.closed.reason), { once: true })
  return vm
}

const gone = (vm: string, cause: unknown): CloudAppError =>
  new CloudAppError('ERR_CLOUDAPP_SOURCE', `QEMU of '${vm}' has gone`, { vm, cause })

const reset = (vm: string): CloudAppError =>
  new CloudAppError('ERR_CLOUDAPP_SOURCE', `'${vm}' was reset: what was known of its kernel no longer holds`, { vm })

interface RamBackend {
  /** Names its memory region can have in QEMU's memory map. */
  readonly names: readonly string[]
  readonly path: string
  readonly size: bigint
  /** Where it begins in the file. */
  readonly offset: bigint
}

const HOW =
  'start it with -object memory-backend-file,id=ram0,mem-path=FILE,size=SIZE,share=on -machine …,memory-backend=ram0'

/** Finds the machine's one RAM backend and its file. */
async function ramBackend(qmp: QmpClient): Promise<RamBackend> {
  const property = (path: string, name: string): Promise<unknown> => qmp.execute('qom-get', { path, property: name })
  const path = await property('/machine', 'memory-backend')
  if (typeof path !== 'string' || !path.startsWith('/objects/')) {
    throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', `QEMU keeps the VM's RAM in no backend of its own: ${HOW}`)
  }
  const type = await property(path, 'type')
  if (type !== 'memory-backend-file') {
    throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', `QEMU keeps the VM's RAM in a ${String(type)}: ${HOW}`)
  }
  if ((await property(path, 'share')) !== true) {
    throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', `QEMU's RAM file is not shared (share=on): ${HOW}`)
  }
  const file = await property(path, 'mem-path')
  if (typeof file !== 'string' || !isAbsolute(file)) {
    throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', `QEMU's mem-path '${String(file)}' is not an absolute path`)
  }
  const size = count(qmp, await property(path, 'size'))
  // A property since QEMU 8.1; before, a backend began where its file did.
  const offset = await property(path, 'offset').catch((error: unknown) => {
    if (CloudAppError.is(error) && error.details?.class === 'GenericError') return 0
    throw error
  })
  return { names: [path.slice('/objects/'.length), path], path: file, size, offset: count(qmp, offset) }
}

function count(qmp: QmpClient, value: unknown): bigint {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) {
    throw qmp.protocol('the RAM backend has an impossible size')
  }
  return BigInt(value)
}
