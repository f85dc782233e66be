import { execFileSync } from 'node:child_process'
import { appendFile, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { type AuditHead, type AuditLog, readAudit, verifyAudit } from '../../../src/broker/audit/index.js'
import { CloudAppError } from './imports.js'
import { filledLog, folder, key, openLog } from './rig.js'

// Many runs, perhaps on a busy machine.
vi.setConfig({ testTimeout: 120_000 })

const brokerKey = key.publicKey
const note = { action: 'test.note', outcome: 'allowed' } as const

async function actions(path: string): Promise<string[]> {
  const out: string[] = []
  for await (const { entry } of readAudit(path)) out.push(entry.action)
  return out
}

describe('appending', () => {
  test.each(['always', 'interval'] as const)('many at once share batches and keep their order (%s)', async (fsync) => {
    const path = join(await folder(), 'audit.log')
    const log = await openLog(path, { fsync })
    const receipts = await Promise.all(Array.from({ length: 2000 }, (_, i) => log.append({ ...note, details: { i } })))
    const seqs = receipts.map(({ seq }) => seq)
    expect(seqs).toEqual([...seqs].sort((a, b) => a - b))
    const head = await log.close()
    expect(await verifyAudit(path, { brokerKey, head })).toMatchObject({ ok: true, unsigned: 0 })
    const order: unknown[] = []
    for await (const { entry } of readAudit(path)) if (entry.action === 'test.note') order.push(entry.details?.i)
    expect(order).toEqual(Array.from({ length: 2000 }, (_, i) => i))
  })

  test('what resolved is in the file although nobody closed it', async () => {
    const path = join(await folder(), 'audit.log')
    const log = await openLog(path)
    const { hash } = await log.append(note)
    expect(await readFile(path, 'utf8')).toContain(`${hash} {`)
    await log.close()
  })

  test('heads come with every so many-th record, and are handed out', async () => {
    const path = join(await folder(), 'audit.log')
    const heads: AuditHead[] = []
    const log = await openLog(path, { headEvery: 10, onHead: (head) => heads.push(head) })
    for (let i = 0; i < 25; i++) await log.append(note)
    expect(heads.map(({ seq }) => seq)).toEqual([10, 21])
    await log.close()
    for (const head of heads) expect((await verifyAudit(path, { brokerKey, head })).ok).toBe(true)
  })

  test('a head comes a while after a record also when nothing follows', async () => {
    const path = join(await folder(), 'audit.log')
    let told: (head: AuditHead) => void = () => undefined
    const first = new Promise<AuditHead>((resolve) => {
      told = resolve
    })
    const log = await openLog(path, { headMs: 1, fsync: 'interval', intervalMs: 1, onHead: told })
    await log.append(note)
    expect((await first).seq).toBeGreaterThan(0)
    await log.close()
  })

  test('text of a peer is cut and kept on one line', async () => {
    const path = join(await folder(), 'audit.log')
    const log = await openLog(path)
    await log.append({
      ...note,
      peer: `\n{"seq":1}\ud800${'x'.repeat(100_000)}`,
      details: { at: 0xffff_ffff_ffff_ffffn },
    })
    await log.close()
    expect((await verifyAudit(path, { brokerKey })).ok).toBe(true)
    for await (const { entry } of readAudit(path)) {
      if (entry.action !== 'test.note') continue
      expect(entry.peer).toHaveLength(513)
      expect(entry.details?.at).toBe('0xffffffffffffffff')
    }
  })

  test('the log keeps its own words, and a closed one takes nothing', async () => {
    const { path } = await filledLog(0)
    const log = await openLog(path)
    await expect(log.append({ ...note, action: 'log.head' })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_INVALID_ARGUMENT',
    })
    await log.close()
    await expect(log.append(note)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  test('somebody else writing the file stops new records, not reserved ones', async () => {
    const path = join(await folder(), 'audit.log')
    const log = await openLog(path)
    await appendFile(path, 'x')
    await expect(log.append(note)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_AUDIT' })
    await log.append({ ...note, action: 'capability.revoke' }, { reserved: true })
    await log.close()
    expect((await verifyAudit(path, { brokerKey })).ok).toBe(false)
  })

  test('a quota stops one holder and leaves the others alone', async () => {
    const path = join(await folder(), 'audit.log')
    const log = await openLog(path, { quota: { recordsPerSecond: 0.001, burst: 3 } })
    const other = 'ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
    for (let i = 0; i < 3; i++) await log.append({ ...note, holder: brokerKey })
    await expect(log.append({ ...note, holder: brokerKey })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT' })
    await log.append({ ...note, holder: brokerKey }, { reserved: true })
    await log.append({ ...note, holder: other })
    await log.close()
  })
})

describe('counting', () => {
  test('a thousand operations are two records with the exact numbers', async () => {
    const path = join(await folder(), 'audit.log')
    const log = await openLog(path)
    const counter = log.counter({ action: 'memory.read', vm: 'web-1' }, { windowMs: 60_000 })
    await counter.begin({ at: 0x1000n })
    expect(await actions(path)).toEqual(['log.open', 'memory.read'])
    counter.done(8)
    for (let i = 1; i < 1000; i++) {
      expect(counter.begin()).toBeUndefined()
      counter.done(8, i === 5)
    }
    await counter.close()
    await log.close()
    const records = []
    for await (const { entry } of readAudit(path)) records.push(entry)
    expect(records[1]).toMatchObject({ vm: 'web-1', details: { at: '0x1000', covers: 65_536, windowMs: 60_000 } })
    expect(records[2]).toMatchObject({
      action: 'memory.read.total',
      details: { operations: 1000, bytes: 8000, failed: 1 },
    })
  })

  test('no more run under one announcement than it covers', async () => {
    const path = join(await folder(), 'audit.log')
    const log = await openLog(path)
    const counter = log.counter({ action: 'memory.read' }, { windowMs: 60_000, operations: 10 })
    await Promise.all(Array.from({ length: 95 }, async () => counter.begin()))
    await counter.close()
    await log.close()
    const totals: unknown[] = []
    for await (const { entry } of readAudit(path))
      if (entry.action === 'memory.read.total') totals.push(entry.details?.operations)
    expect(totals).toEqual([...Array(9).fill(10), 5])
  })

  test('an operation that can not be announced is refused', async () => {
    const path = join(await folder(), 'audit.log')
    const log = await openLog(path)
    const counter = log.counter({ action: 'memory.read' })
    await writeFile(path, '')
    await expect(counter.begin()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_AUDIT' })
    await expect(counter.begin()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_AUDIT' })
    await log.close()
  })
})

// A real full disk: a tmpfs of our own. Only root may mount one.
describe.skipIf(process.getuid?.() !== 0)('a full disk', () => {
  let mounted: string | undefined

  afterEach(async () => {
    if (mounted !== undefined) execFileSync('umount', [mounted])
    mounted = undefined
  })

  async function fullLog(): Promise<{ path: string; log: AuditLog; ballast: string; written: number }> {
    const at = await folder()
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', at])
    mounted = at
    const path = join(at, 'audit.log')
    const log = await openLog(path)
    const ballast = join(at, 'ballast')
    const room = 256 * 1024 - 16 * 1024 - 3 * 4096
    await writeFile(ballast, Buffer.alloc(room - 8192))
    let written = 0
    for (; written < 1000; written++) {
      const failed = await log.append(note).then(
        () => undefined,
        (error: unknown) => error,
      )
      if (failed === undefined) continue
      expect(CloudAppError.is(failed, 'ERR_CLOUDAPP_AUDIT')).toBe(true)
      break
    }
    expect(written).toBeLessThan(1000)
    return { path, log, ballast, written }
  }

  test('stops new records, lets reserved ones through, and they join the log when there is room', async () => {
    const { path, log, ballast, written } = await fullLog()
    for (let i = 0; i < 5; i++) {
      await log.append({ ...note, action: 'capability.revoke' }, { reserved: true })
      await expect(log.append(note)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_AUDIT' })
    }
    const head = await log.head()
    expect(await verifyAudit(path, { brokerKey, head })).toMatchObject({ ok: true })
    expect(log.failure?.code).toBe('ERR_CLOUDAPP_AUDIT')
    await rm(ballast)
    await log.append(note)
    expect(log.failure).toBeUndefined()
    await log.close()
    expect((await readFile(`${path}.reserve`)).every((byte) => byte === 0)).toBe(true)
    const seen = await actions(path)
    expect(seen.filter((action) => action === 'capability.revoke')).toHaveLength(5)
    expect(seen.filter((action) => action === 'test.note')).toHaveLength(written + 1)
    expect(await verifyAudit(path, { brokerKey, head })).toMatchObject({ ok: true, state: 'closed' })
  })

  test('and a broker killed while it was full loses no reserved record', async () => {
    const { path, log, ballast } = await fullLog()
    await log.append({ ...note, action: 'capability.revoke' }, { reserved: true })
    const head = await log.head()
    // The same files opened again, as after a kill: the first log is left as it is.
    const next = await openLog(path)
    await rm(ballast)
    await next.append(note)
    await next.close()
    expect(await verifyAudit(path, { brokerKey, head })).toMatchObject({ ok: true, state: 'closed' })
    expect(await actions(path)).toContain('capability.revoke')
    await log.close().catch(() => undefined)
  })
})
