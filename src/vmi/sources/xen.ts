import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { CloudAppError } from '../../errors.js'
import { CA_OPEN_WRITE } from '../../native/abi.js'
import { checked, loadShim } from '../../native/shim.js'
import { checkOptions } from '../../options.js'
import { LocalMemory } from '../local.js'
import { invalid } from '../local-check.js'
import { LocalVm } from './local-vm.js'
import { XenAgent } from './xen-agent.js'
import { domainOf, findDomain, readStore, type XenDomain } from './xen-domains.js'
import { XenPause } from './xen-pause.js'
import { XenVcpus } from './xen-vcpus.js'

export interface XenOptions {
  readonly signal?: AbortSignal
  /** The boot nonce in the host's register; without, one is derived (see {@link openXen}). 32 hexadecimal digits. */
  readonly bootNonce?: string
  /** Maps the guest's memory for writing too. */
  readonly writable?: boolean
  /** How much of the guest's memory may be mapped at a time, in bytes: 2 MiB to 64 GiB, 256 MiB by default. */
  readonly mapped?: number
}

const OPTIONS = ['signal', 'bootNonce', 'writable', 'mapped'] as const

/** ms between two looks whether the domain is still there. */
const LOOK = 1000

/**
 * Opens a domain of the Xen host whose control domain this is. Xen's own libraries are loaded now, from this machine.
 *
 * Guest memory is mapped when it is touched, 2 MiB by one call, and stays mapped until `mapped` bytes are and others are
 * wanted. A page the guest gives back to Xen meanwhile (ballooning) reads as it last was; `memory.invalidate()` drops all
 * mappings. An address without memory behind it is an `outside-ram` fault.
 *
 * The identity's boot nonce is the host's register's, where there is one. Otherwise it is derived from the boot of the control
 * domain, the domain's number and its start time: each start and each restore of the domain has its own.
 *
 * `pause()` scopes nest. Xen counts pauses, so one of ours and one of somebody else do not end each other. Pauses and events are
 * held by a process of their own, the event agent, which undoes them if this process dies; it is started when first needed.
 *
 * @param which name, number or uuid of the domain.
 * @returns The VM; the caller closes it. It ends by itself, with `ERR_CLOUDAPP_SOURCE`, when the domain does.
 * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` (no Xen, a library or device missing, no rights on the domain, a PV
 *   guest; the message names the fix), `ERR_CLOUDAPP_NOT_FOUND`, `ERR_CLOUDAPP_SOURCE`, `ERR_CLOUDAPP_ABORTED`.
 */
export async function openXen(which: string, options: XenOptions = {}): Promise<LocalVm> {
  checkOptions('openXen', options, OPTIONS)
  const { signal, bootNonce, writable = false, mapped = 0 } = options
  if (bootNonce !== undefined && !/^[0-9a-f]{32}$/.test(bootNonce)) {
    throw invalid('bootNonce must be 32 hexadecimal digits in lower case')
  }
  if (!Number.isSafeInteger(mapped) || mapped < 0) throw invalid('mapped must be a number of bytes')
  const shim = loadShim()
  const domain = findDomain(shim, which)
  const identity = { name: domain.name, uuid: domain.uuid, bootNonce: bootNonce ?? (await derivedNonce(domain)) }
  if (signal?.aborted === true) {
    throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'opening the VM was aborted', { cause: signal.reason })
  }
  const { domid } = domain
  const flags = writable ? CA_OPEN_WRITE : 0
  const handle = checked(shim, shim.ca_xen_open(domid, flags, BigInt(mapped)))
  const agent = new XenAgent(shim, domid)
  const pause = new XenPause(agent)
  const memory = LocalMemory.over(shim, handle, { writable, pause })
  const vm = new LocalVm({
    identity,
    memory,
    vcpus: new XenVcpus(shim, domid),
    pause: () => pause.hold(),
    events: agent,
    release: async (reason) => {
      clearInterval(timer)
      try {
        await pause.close()
      } finally {
        await agent.close(reason)
      }
    },
  })
  // Mapped pages outlive their domain: without a look at Xen, its memory would go on being read, and never be freed.
  const timer = setInterval(() => {
    const why = ended(() => domainOf(shim, domid), domain)
    // By whom it ends, the handle's close() reports; here nobody waits for it.
    if (why !== undefined) vm.end(why).catch(() => {})
  }, LOOK)
  timer.unref()
  return vm

  async function derivedNonce({ domid, uuid }: XenDomain): Promise<string> {
    const boot = await readFile('/proc/sys/kernel/random/boot_id', 'utf8')
    const started = readStore(shim, `/vm/${uuid}/start_time`) ?? ''
    return createHash('sha256')
      .update(`xen boot nonce\0${boot}\0${domid}\0${uuid}\0${started}`)
      .digest('hex')
      .slice(0, 32)
  }
}

function ended(
  look: () => XenDomain | undefined,
  was: XenDomain & { readonly name: string },
): CloudAppError | undefined {
  const vm = was.name
  try {
    const now = look()
    if (now !== undefined && !now.dying && now.uuid === was.uuid) return undefined
    return new CloudAppError('ERR_CLOUDAPP_SOURCE', `the domain '${vm}' has gone`, { vm })
  } catch (cause) {
    return new CloudAppError('ERR_CLOUDAPP_SOURCE', `Xen no longer tells of '${vm}'`, { vm, cause })
  }
}
