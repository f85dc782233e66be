import { join } from 'node:path'
import { expect, test, vi } from 'vitest'
import { LiveFile } from '../../../src/broker/audit/file.js'
import { deferred } from '../../../src/transport/deferred.js'
import { folder, openLog } from './rig.js'

const note = { action: 'test.note', outcome: 'allowed' } as const
const turns = async () => {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve))
}

test('always: a record counts when it is on the disk, and those that wait share a sync', async () => {
  const log = await openLog(join(await folder(), 'audit.log'), { fsync: 'always' })
  const disk = deferred<void>()
  const sync = vi.spyOn(LiveFile.prototype, 'sync').mockImplementation(() => disk.promise)
  try {
    let done = 0
    const all = Array.from({ length: 5 }, () => log.append(note).then(() => done++))
    await turns()
    expect({ done, syncs: sync.mock.calls.length }).toEqual({ done: 0, syncs: 1 })
    disk.resolve()
    await Promise.all(all)
    expect(done).toBe(5)
  } finally {
    sync.mockRestore()
  }
  await log.close()
})

test('always: a sync that fails leaves nothing acknowledged, then or later', async () => {
  const log = await openLog(join(await folder(), 'audit.log'), { fsync: 'always' })
  const sync = vi
    .spyOn(LiveFile.prototype, 'sync')
    .mockRejectedValueOnce(Object.assign(new Error('io'), { code: 'EIO' }))
  try {
    await expect(log.append(note)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_AUDIT' })
    await expect(log.append(note)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_AUDIT' })
    await expect(log.append(note, { reserved: true })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_AUDIT' })
  } finally {
    sync.mockRestore()
  }
  await log.close().catch(() => undefined)
})

test('interval: a record counts when the kernel has it, and a sync follows', async () => {
  const log = await openLog(join(await folder(), 'audit.log'), { fsync: 'interval', intervalMs: 50 })
  await vi.waitFor(() => expect(log.failure).toBeUndefined())
  const sync = vi.spyOn(LiveFile.prototype, 'sync')
  try {
    await log.append(note)
    await vi.waitFor(() => expect(sync).toHaveBeenCalled(), { timeout: 10_000 })
  } finally {
    sync.mockRestore()
  }
  await log.close()
})

test('a quota is shared by all whom one delegate narrowed its token for', async () => {
  const { KeyPair } = await import('./imports.js')
  const log = await openLog(join(await folder(), 'audit.log'), { quota: { recordsPerSecond: 0.001, burst: 3 } })
  const delegate = KeyPair.generate().publicKey
  const by = () => log.append({ ...note, holder: KeyPair.generate().publicKey }, { delegate })
  await Promise.all([by(), by(), by()])
  await expect(by()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT', details: { limit: 'audit' } })
  await log.append({ ...note, holder: KeyPair.generate().publicKey })
  await log.close()
})
