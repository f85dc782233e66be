import { createHash } from 'node:crypto'
import { readFile, stat } from 'node:fs/promises'
import type { VmIdentity } from '../guest.js'
import { startOf } from './process.js'
import type { QmpClient } from './qmp.js'

const fields = (value: unknown): Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}

/** Name and uuid as QEMU was given them; the boot nonce as openQemu's documentation says. */
export async function qemuIdentity(qmp: QmpClient, bootNonce: string | undefined): Promise<VmIdentity> {
  const uuid = fields(await qmp.execute('query-uuid')).UUID
  if (typeof uuid !== 'string' || !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(uuid)) {
    throw qmp.protocol("'query-uuid' gave no UUID")
  }
  const name = fields(await qmp.execute('query-name')).name
  return {
    name: typeof name === 'string' && name !== '' ? name.slice(0, 256) : uuid.toLowerCase(),
    uuid: uuid.toLowerCase(),
    bootNonce: bootNonce ?? (await derivedNonce(qmp, uuid.toLowerCase())),
  }
}

async function derivedNonce(qmp: QmpClient, uuid: string): Promise<string> {
  const hash = createHash('sha256').update(`qemu boot nonce\0${uuid}\0`)
  const start = await processStart(qmp)
  if (start !== undefined) {
    hash.update(`${await readFile('/proc/sys/kernel/random/boot_id', 'utf8')}\0${start}`)
  } else {
    // QEMU makes its socket anew at each start; chmod and chown leave inode and birth alone.
    const socket = await stat(qmp.path, { bigint: true })
    hash.update(`${socket.dev}\0${socket.ino}\0${socket.birthtimeNs}`)
  }
  return hash.digest('hex').slice(0, 32)
}

/** Pid and start time of QEMU's process, or undefined where it is not in our pid namespace. */
async function processStart(qmp: QmpClient): Promise<string | undefined> {
  const cpus = await qmp.execute('query-cpus-fast')
  const thread = Array.isArray(cpus) ? fields(cpus[0])['thread-id'] : undefined
  if (typeof thread !== 'number' || !Number.isSafeInteger(thread) || thread <= 0) return undefined
  try {
    const status = await readFile(`/proc/${thread}/status`, 'utf8')
    const pid = /^Tgid:\s*(\d+)$/m.exec(status)?.[1]
    if (pid === undefined) return undefined
    // The thread's number means another process where QEMU lives in a pid namespace of its own.
    if (!(await readFile(`/proc/${pid}/comm`, 'latin1')).startsWith('qemu')) return undefined
    const started = await startOf(Number(pid))
    return started === undefined ? undefined : `${pid} ${started}`
  } catch {
    // Not visible: hidepid, another namespace. The caller has another way.
    return undefined
  }
}
