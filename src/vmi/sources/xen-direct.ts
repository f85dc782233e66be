import { CloudAppError } from '../../errors.js'
import { CA_OPEN_WRITE, CA_XEN_DIRECT } from '../../native/abi.js'
import { checked, loadShim } from '../../native/shim.js'
import { checkOptions } from '../../options.js'
import type { VmIdentity } from '../guest.js'
import { LocalMemory } from '../local.js'
import { invalid } from '../local-check.js'
import { LocalVm } from './local-vm.js'
import { XenAgent } from './xen-agent.js'
import { LAST_DOMID } from './xen-domains.js'
import { XenPause } from './xen-pause.js'
import { XenVcpus } from './xen-vcpus.js'

/** What Xen lets this domain do to another, beside mapping it for reading. */
export interface XenDirectRights {
  readonly write?: boolean
  /** Read the vCPUs' registers. */
  readonly registers?: boolean
  readonly pause?: boolean
}

export interface XenDirectOptions extends XenDirectRights {
  /** The client's number on this host. */
  readonly domid: number
  /** Which VM that is, as whoever gave the right says: to ask Xen is a right of its own. */
  readonly identity: VmIdentity
  /** When the right ends, in ms since 1970 UTC: then the handle ends, whatever Xen says. */
  readonly expires?: number
  /** As of {@link XenOptions}. */
  readonly mapped?: number
}

const OPTIONS = ['domid', 'identity', 'expires', 'mapped', 'write', 'registers', 'pause'] as const

/** ms between two looks whether Xen still gives the memory. */
const LOOK = 1000
/** The longest a timer of Node's can be. */
const MAX_TIMER = 2 ** 31 - 1

/**
 * Opens a VM from a service domain to which Xen itself gives rights over it (FLASK; docs/flask.md), without a broker between
 * them. The service domain is a PV domain whose kernel has loaded xen-privcmd with `unrestricted=1`: what it may do is for Xen
 * to say.
 *
 * Asks Xen for nothing but what the rights are for: with memory alone, where the memory ends is found by mapping. Once a second,
 * and in every operation that maps, it sees whether Xen still gives the memory. When Xen refuses, everything that was mapped is
 * unmapped and the VM ends with `ERR_CLOUDAPP_REVOKED`, which later use of its memory throws; at `expires` the same, with
 * `ERR_CLOUDAPP_EXPIRED`.
 *
 * @returns The VM; the caller closes it. `vcpus`, `pause` and `memory.write` are there as far as the rights say so.
 * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` if Xen or the kernel refuses (the message says what), `ERR_CLOUDAPP_SOURCE`
 *   without such a domain, `ERR_CLOUDAPP_EXPIRED`, `ERR_CLOUDAPP_INVALID_ARGUMENT`.
 */
export async function openXenDirect(options: XenDirectOptions): Promise<LocalVm> {
  checkOptions('openXenDirect', options, OPTIONS)
  const { domid, identity, expires, mapped = 0, write: writable = false, registers = false } = options
  if (!Number.isSafeInteger(domid) || domid < 0 || domid > LAST_DOMID)
    throw invalid('domid must be the number of a domain')
  if (!Number.isSafeInteger(mapped) || mapped < 0) throw invalid('mapped must be a number of bytes')
  const { name } = identity
  if (expires !== undefined && !(Date.now() < expires)) throw expired(name)
  const shim = loadShim()
  const flags = CA_XEN_DIRECT | (writable ? CA_OPEN_WRITE : 0)
  const handle = checked(shim, shim.ca_xen_open(domid, flags, BigInt(mapped)))
  // The agent also undoes the pauses of a service domain's process that dies.
  const agent = options.pause === true ? new XenAgent(shim, domid) : undefined
  const pause = agent === undefined ? undefined : new XenPause(agent)
  const timers: NodeJS.Timeout[] = []
  const memory = LocalMemory.over(shim, handle, { writable, ...(pause === undefined ? {} : { pause }) })
  const vm = new LocalVm({
    identity,
    memory,
    ...(registers ? { vcpus: new XenVcpus(shim, domid, { blind: true }) } : {}),
    ...(pause === undefined ? {} : { pause: () => pause.hold() }),
    release: async (reason) => {
      for (const timer of timers) clearTimeout(timer)
      try {
        await pause?.close()
      } finally {
        await agent?.close(reason)
      }
    },
  })
  const end = (why: CloudAppError): void => {
    // First: the agent may take its time to end, and what Xen let us map before it would go on to be read.
    memory.revoke(why)
    // By whom it ends, the handle's close() reports; here nobody waits for it.
    vm.end(why).catch(() => {})
  }
  const look = (): void => {
    try {
      checked(shim, shim.ca_xen_probe(handle))
    } catch (cause) {
      const code = CloudAppError.is(cause, 'ERR_CLOUDAPP_REVOKED') ? cause.code : 'ERR_CLOUDAPP_SOURCE'
      end(new CloudAppError(code, cause instanceof Error ? cause.message : String(cause), { vm: name, cause }))
    }
  }
  timers.push(setInterval(look, LOOK))
  const arm = (at: number): void => {
    const left = at - Date.now()
    if (left <= 0) end(expired(name))
    else timers.push(setTimeout(() => arm(at), Math.min(MAX_TIMER, left)).unref())
  }
  if (expires !== undefined) arm(expires)
  timers[0]?.unref()
  return vm
}

const expired = (vm: string): CloudAppError =>
  new CloudAppError('ERR_CLOUDAPP_EXPIRED', `the time of the right over ${vm} is over`, { vm })
