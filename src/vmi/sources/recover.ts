import { CloudAppError } from '../../errors.js'
import { recoverQemu } from './qemu-recover.js'
import type { RecoveredVm } from './recovered.js'
import { recoverXen } from './xen-recover.js'

/**
 * Undoes in every VM of this host what was left by processes that were all killed at once, this library's users and those that
 * stand by for them: a guest's own bytes come back, vCPUs get their answers, pauses end. What living processes do is left alone.
 * Whoever opens or watches the VM next does the same; this is for who must not wait for one, as a broker that is started
 * again. Xen's domains are recovered by root; of QEMU's VMs, those that processes of this user paused.
 *
 * @returns the VMs in which something was undone
 * @throws CloudAppError if that failed for a VM, after all others were done: `ERR_CLOUDAPP_SOURCE`, `ERR_CLOUDAPP_TIMEOUT` (another
 *   client has QEMU's socket), `ERR_CLOUDAPP_NATIVE` without the event agent
 */
export async function recoverVms(): Promise<RecoveredVm[]> {
  const { vms, failed } = await recoverQemu()
  const domains = await recoverXen().catch((error: unknown) => {
    failed.push(error)
    return []
  })
  if (failed.length === 1) throw failed[0]
  if (failed.length > 1) {
    const why = failed.map((error) => (error instanceof Error ? error.message : String(error))).join('; ')
    throw new CloudAppError('ERR_CLOUDAPP_SOURCE', why, { cause: failed[0] })
  }
  return [...vms, ...domains]
}
