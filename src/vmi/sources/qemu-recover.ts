import { eraseEntry, type Orphan, orphans } from './qemu-ledger.js'
import { vmStatus } from './qemu-status.js'
import { QmpClient } from './qmp.js'
import type { RecoveredVm } from './recovered.js'

/** Lets the VMs run on that were paused by processes of this user which have all gone; and why it could not, where it could not. */
export async function recoverQemu(): Promise<{ vms: RecoveredVm[]; failed: unknown[] }> {
  // Side by side: a socket that has another client is waited for.
  const ends = await Promise.allSettled((await orphans()).map(recover))
  const vms = ends.flatMap((end) => (end.status === 'fulfilled' ? end.value : []))
  return { vms, failed: ends.flatMap((end) => (end.status === 'rejected' ? [end.reason] : [])) }
}

async function recover(orphan: Orphan): Promise<RecoveredVm[]> {
  const qmp = await QmpClient.connect(orphan.socket)
  try {
    const resumed = await resume(qmp, orphan)
    return resumed ? [{ source: `qemu:${orphan.socket}`, breakpoints: 0, events: false, pauses: 1 }] : []
  } finally {
    qmp.close()
  }
}

/** The same for one VM, by whom opens it. */
export async function recoverOpened(qmp: QmpClient): Promise<void> {
  for (const orphan of await orphans(qmp.path)) await resume(qmp, orphan)
}

async function resume(qmp: QmpClient, { entry }: Orphan): Promise<boolean> {
  const paused = (await vmStatus(qmp)).status === 'paused'
  if (paused) await qmp.execute('cont')
  await eraseEntry(entry)
  return paused
}
