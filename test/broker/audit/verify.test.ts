import { appendFile, readFile, rename, stat, truncate, writeFile } from 'node:fs/promises'
import fc from 'fast-check'
import { describe, expect, test, vi } from 'vitest'
import { headToText, parseHead, readAudit, verifyAudit } from '../../../src/broker/audit/index.js'
import { encodeRecord } from '../../../src/broker/audit/record.js'
import { CloudAppError, KeyPair } from './imports.js'
import { filledLog, key, lines, openLog, putLines } from './rig.js'

// Many runs, perhaps on a busy machine.
vi.setConfig({ testTimeout: 120_000 })

const brokerKey = key.publicKey

describe('a log that nobody touched', () => {
  test('verifies, with the head and without it, and reads back', async () => {
    const { path, head } = await filledLog(5)
    const report = await verifyAudit(path, { brokerKey, head })
    expect(report).toMatchObject({
      ok: true,
      faults: [],
      records: 8,
      seq: 8,
      unsigned: 0,
      state: 'closed',
      log: head.log,
    })
    expect((await verifyAudit(path, { brokerKey })).ok).toBe(true)
    const actions: string[] = []
    for await (const { entry } of readAudit(path)) actions.push(entry.action)
    expect(actions).toEqual(['log.open', ...Array(5).fill('test.note'), 'log.close', 'log.head'])
  })

  test('goes on over a restart and over segments', async () => {
    const { path } = await filledLog(30, { segmentBytes: 2000, headEvery: 4 })
    const log = await openLog(path, { segmentBytes: 2000 })
    await log.append({ action: 'test.more', outcome: 'refused' })
    const head = parseHead(headToText(await log.head()))
    await log.close()
    const report = await verifyAudit(path, { brokerKey, head })
    expect(report.faults).toEqual([])
    expect(report.seq).toBeGreaterThan(31)
    expect((await stat(`${path}.000002`)).size).toBeGreaterThan(2000)
  })
})

describe('tampering', () => {
  test('any byte changed is found', async () => {
    const { path, head } = await filledLog(3)
    const good = await readFile(path)
    const at = fc.integer({ min: 0, max: good.length - 1 })
    await fc.assert(
      fc.asyncProperty(at, fc.integer({ min: 1, max: 255 }), async (index, flip) => {
        const bad = Buffer.from(good)
        bad[index] = (bad[index] as number) ^ flip
        await writeFile(path, bad)
        expect((await verifyAudit(path, { brokerKey, head })).ok).toBe(false)
        expect((await verifyAudit(path, { brokerKey })).ok).toBe(false)
      }),
      { numRuns: 200 },
    )
  })

  test('a changed record is named', async () => {
    const { path } = await filledLog(5)
    const list = await lines(path)
    list[3] = (list[3] as string).replace('"i":2', '"i":3')
    await putLines(path, list)
    const { faults } = await verifyAudit(path, { brokerKey })
    expect(faults).toMatchObject([{ kind: 'changed', seq: 4, line: 4 }])
    expect(faults[0]?.message).toContain('record 4')
  })

  test('a record replaced together with its hash is found at the next one', async () => {
    const { path } = await filledLog(5)
    const list = await lines(path)
    const { seq, prev, time, mono } = JSON.parse((list[3] as string).slice(65))
    const made = encodeRecord(seq, prev, time, BigInt(mono), { action: 'made.up', outcome: 'allowed' })
    list[3] = made.line.trimEnd()
    await putLines(path, list)
    expect((await verifyAudit(path, { brokerKey })).faults[0]).toMatchObject({ kind: 'changed', seq: 5 })
  })

  test.each([
    ['removed', (list: string[]) => list.splice(4, 2), 5],
    ['removed', (list: string[]) => list.shift(), 1],
    ['reordered', (list: string[]) => list.splice(3, 0, ...list.splice(4, 1)), 4],
    ['inserted', (list: string[]) => list.splice(5, 0, list[2] as string), 3],
  ] as const)('a record %s is found and named', async (kind, change, seq) => {
    const { path } = await filledLog(6)
    const list = await lines(path)
    change(list)
    await putLines(path, list)
    expect((await verifyAudit(path, { brokerKey })).faults[0]).toMatchObject({ kind, seq })
  })

  test('a cut tail is found with the head, and only with it', async () => {
    const { path, head } = await filledLog(6)
    await putLines(path, (await lines(path)).slice(0, 5))
    expect(await verifyAudit(path, { brokerKey })).toMatchObject({ ok: true, state: 'open', unsigned: 5 })
    const { faults } = await verifyAudit(path, { brokerKey, head })
    expect(faults).toMatchObject([{ kind: 'cut', seq: 6 }])
    expect(faults[0]?.message).toContain('records 6 to 9')
  })

  test('a log rewritten from a record on is found: by its heads, or by the head the customer holds', async () => {
    const { path, head } = await filledLog(20, { headEvery: 8 })
    const list = await lines(path)
    let prev = (list[2] as string).slice(0, 64)
    const made = list.slice(3).map((line) => {
      const { seq, time, mono, entry } = JSON.parse(line.slice(65))
      const record = encodeRecord(seq, prev, time, BigInt(mono), { ...entry, vm: 'another' })
      prev = record.hash
      return record.line.trimEnd()
    })
    await putLines(path, [...list.slice(0, 3), ...made])
    expect((await verifyAudit(path, { brokerKey })).faults[0]?.kind).toBe('head')
    const notes = made.filter((line) => !line.includes('log.head'))
    prev = (list[2] as string).slice(0, 64)
    const plain = notes.map((line, i) => {
      const { time, mono, entry } = JSON.parse(line.slice(65))
      const record = encodeRecord(4 + i, prev, time, BigInt(mono), entry)
      prev = record.hash
      return record.line.trimEnd()
    })
    await putLines(path, [...list.slice(0, 3), ...plain])
    expect((await verifyAudit(path, { brokerKey })).faults[0]?.kind).toBe('head')
    expect((await verifyAudit(path, { brokerKey, head })).ok).toBe(false)
  })

  test('a head of another log or another broker is refused', async () => {
    const { path } = await filledLog(2)
    const other = await filledLog(2)
    expect((await verifyAudit(path, { brokerKey, head: other.head })).faults[0]?.kind).toBe('foreign')
    const { head } = await filledLog(2, { key: KeyPair.generate() })
    expect((await verifyAudit(path, { brokerKey, head })).faults[0]?.kind).toBe('foreign')
    const forged = { ...other.head, seq: 3 }
    expect((await verifyAudit(other.path, { brokerKey, head: forged })).faults[0]?.kind).toBe('foreign')
  })

  test('a line without end is not held in memory', async () => {
    const { path } = await filledLog(1)
    await appendFile(path, Buffer.alloc(300_000, 0x61))
    await appendFile(path, '\n')
    const { faults, records } = await verifyAudit(path, { brokerKey })
    expect(faults[0]).toMatchObject({ kind: 'changed' })
    expect(records).toBe(4)
  })

  test('any bytes at all give a report', async () => {
    const { path } = await filledLog(1)
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), async (bytes) => {
        await writeFile(path, bytes)
        const report = await verifyAudit(path, { brokerKey })
        if (bytes.includes(0x0a)) expect(report.ok).toBe(false)
      }),
      { numRuns: 100 },
    )
  })
})

describe('a crash', () => {
  test('leaves a torn line, which is told from tampering and goes at the next open', async () => {
    const { path } = await filledLog(4)
    const list = await lines(path)
    const last = list.at(-1) as string
    for (const left of [1, 40, 64, 66, 90, last.length - 1]) {
      await putLines(path, list.slice(0, -1))
      await appendFile(path, last.slice(0, left))
      expect(await verifyAudit(path, { brokerKey })).toMatchObject({ ok: true, state: 'torn' })
      const log = await openLog(path)
      await log.close()
      const report = await verifyAudit(path, { brokerKey })
      expect(report).toMatchObject({ ok: true, state: 'closed' })
      let torn = 0
      for await (const { entry } of readAudit(path)) torn = Math.max(torn, Number(entry.details?.tornBytes ?? 0))
      expect(torn).toBe(left)
    }
  })

  test('that took only the newline takes no record', async () => {
    const { path, head } = await filledLog(4)
    await truncate(path, (await stat(path)).size - 1)
    const log = await openLog(path)
    await log.close()
    expect(await verifyAudit(path, { brokerKey, head })).toMatchObject({ ok: true, state: 'closed' })
  })

  test('between two segments leaves a log that goes on', async () => {
    const { path, head } = await filledLog(30, { segmentBytes: 2000 })
    await rename(path, `${path}.000099`)
    expect(await verifyAudit(path, { brokerKey, head })).toMatchObject({ ok: true, seq: head.seq })
    const log = await openLog(path)
    await log.close()
    expect(await verifyAudit(path, { brokerKey, head })).toMatchObject({ ok: true, state: 'closed' })
  })

  test('a log that was tampered with is not written on', async () => {
    const { path } = await filledLog(4)
    const list = await lines(path)
    list.splice(2, 1)
    await putLines(path, list)
    await expect(openLog(path)).rejects.toSatisfy((error) => CloudAppError.is(error, 'ERR_CLOUDAPP_AUDIT'))
  })
})
