import { once } from 'node:events'
import { openSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { describe, expect, it } from 'vitest'
import { draftFinding } from '../../src/service/draft.js'
import { CursorCodec } from '../../src/service/store/cursor.js'
import type { StoreQuery } from '../../src/service/store/rows.js'
import { FindingStore } from '../../src/service/store/store.js'
import { SEVERITIES } from '../../src/service/vocabulary.js'
import { startChild } from './child.js'
import { DB, openFindings, openStore, PRODUCT, temporaryFolder, WEB } from './support.js'

const all: StoreQuery = { scope: 'all', after: 0, minSeverity: 1, statuses: [], limit: 1000 }
const draft = (key: string, about = WEB, severity: (typeof SEVERITIES)[number] = 'high') =>
  ({ kind: 'raise', draft: draftFinding({ key, about, title: key, severity }) }) as const

describe('FindingStore', () => {
  it('lists by severity, status, VM and cursor, a page at a time, newest change last', () => {
    const store = openStore()
    for (let i = 0; i < 60; i++) store.apply([draft(`k${i}`, i % 3 ? WEB : DB, SEVERITIES[i % 6])])
    store.apply([draft('k0', DB, 'informational'), { kind: 'close', key: 'k5', vm: undefined, detail: undefined }])
    const keys = (query: Partial<StoreQuery>) =>
      store.list({ ...all, ...query }).map((c) => JSON.parse(c.json).unmapped.cloudapp.key as string)
    expect(keys({})).toHaveLength(60)
    expect(keys({}).slice(-2)).toEqual(['k0', 'k5'])
    expect(keys({ minSeverity: 5 })).toHaveLength(20)
    expect(keys({ statuses: [4] })).toEqual(['k5'])
    expect(keys({ scope: new Set([DB.uuid]) })).toHaveLength(20)
    expect(keys({ scope: new Set() })).toEqual([])
    const many = new Set([DB.uuid, ...Array.from({ length: 100 }, (_, i) => `unknown-${i}`)])
    expect(keys({ scope: many })).toEqual(keys({ scope: new Set([DB.uuid]) }))
    const pages: string[] = []
    for (let after = 0; ; ) {
      const page = store.list({ ...all, after, limit: 7 })
      if (page.length === 0) break
      pages.push(...page.map((c) => c.uid))
      after = page.at(-1)?.sequence ?? 0
    }
    expect(new Set(pages).size).toBe(60)
    expect(store.vmsNamed('web-1', 'all')).toEqual(new Set([WEB.uuid]))
    expect(store.vmsNamed('web-1', new Set([DB.uuid]))).toEqual(new Set())
  })

  it('goes on with its sequence and its cursors after it was closed and opened', () => {
    const path = join(temporaryFolder(), 'f.db')
    const first = openStore(path)
    first.apply([draft('a'), draft('b')])
    const cursor = first.cursors.encode(1)
    first.close()
    const second = openStore(path)
    expect(second.cursors.decode(cursor)).toBe(1)
    expect(second.apply([draft('c')])[0]?.[0]?.sequence).toBe(3)
    expect(second.count).toBe(3)
  })

  it('does all of a batch or nothing', () => {
    const store = openStore()
    const broken = { kind: 'raise', draft: { ...draft('b').draft, severity: 9 } } as unknown as ReturnType<typeof draft>
    expect(() => store.apply([draft('a'), broken])).toThrow()
    expect([store.count, store.sequence, store.list(all)]).toEqual([0, 0, []])
    expect(store.apply([draft('a')])[0]?.[0]).toMatchObject({ sequence: 1, change: 'create' })
  })

  it('says what is wrong with a file that is no store, is damaged, or is held', () => {
    const folder = temporaryFolder()
    const reason = (path: string): unknown => {
      try {
        FindingStore.open({ path, product: PRODUCT }).close()
        return undefined
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_CLOUDAPP_STORE' })
        return (error as { details: { reason: string } }).details.reason
      }
    }
    writeFileSync(join(folder, 'text.db'), 'no database at all '.repeat(100))
    expect(reason(join(folder, 'text.db'))).toBe('SQLITE_NOTADB')
    expect(reason(join(folder, 'no', 'such', 'folder.db'))).toBe('SQLITE_CANTOPEN')
    const held = openStore(join(folder, 'held.db'))
    expect(reason(join(folder, 'held.db'))).toMatch(/SQLITE_(BUSY|LOCKED)/)
    held.apply(Array.from({ length: 500 }, (_, i) => draft(`k${i}`)))
    held.close()
    const fd = openSync(join(folder, 'held.db'), 'r+')
    for (let page = 1; page < 200; page++) writeSync(fd, Buffer.alloc(2048, 0xff), 0, 2048, page * 4096)
    expect(() => {
      const store = openStore(join(folder, 'held.db'))
      store.list(all)
    }).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_STORE' }))
  })

  it('removes by count and by age, and counts the gap exactly for each asker', () => {
    let now = 1_000_000
    const store = openStore(undefined, () => now)
    const limits = { maxAgeMs: 1000, maxCount: 6, maxTombstones: 100, batch: 100 }
    for (let i = 0; i < 10; i++) store.apply([draft(`k${i}`, i % 2 ? WEB : DB, i < 5 ? 'low' : 'high')])
    expect(store.retain(limits).removed).toBe(4)
    expect(store.count).toBe(6)
    expect(store.removedSince({ ...all, after: 0 })).toEqual({ count: 4, last: 4, exact: true })
    expect(store.removedSince({ ...all, after: 1 })).toEqual({ count: 3, last: 4, exact: true })
    expect(store.removedSince({ ...all, after: 1, scope: new Set([WEB.uuid]) })).toEqual({
      count: 2,
      last: 4,
      exact: true,
    })
    expect(store.removedSince({ ...all, after: 0, minSeverity: 4 })).toMatchObject({ count: 0 })
    now += 500
    store.apply([draft('k8', DB)])
    now += 501
    expect(store.retain(limits).removed).toBe(5)
    expect(store.list(all).map((c) => c.sequence)).toEqual([11])
    expect(store.retain(limits).removed).toBe(0)
    now += 1000
    store.retain({ ...limits, maxTombstones: 3 })
    expect(store.removedSince({ ...all, after: 0 })).toMatchObject({ count: 3, exact: false })
    expect(store.removedSince({ ...all, after: store.sequence })).toMatchObject({ count: 0, exact: true })
  })

  it('has on disk whatever it acknowledged, also when it is killed while it writes', async () => {
    const path = join(temporaryFolder(), 'crash.db')
    for (let round = 0; round < 3; round++) {
      const child = await startChild('crash-child.ts', path, String(round))
      const acknowledged = new Map<string, number>()
      for await (const line of createInterface(child.stdout)) {
        const [key = '', count] = line.split(' ')
        acknowledged.set(key, Number(count))
        if (acknowledged.size >= 150 && !child.killed) child.kill('SIGKILL')
      }
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
      expect(child.signalCode).toBe('SIGKILL')
      const store = openStore(path)
      const stored = new Map(
        store.list({ ...all, limit: 100_000 }).map((c) => [JSON.parse(c.json).unmapped.cloudapp.key, c.count]),
      )
      for (const [key, count] of acknowledged) expect(stored.get(key), key).toBeGreaterThanOrEqual(count)
      store.close()
    }
  }, 60_000)

  it('takes raises a batch at a time fast enough for a burst', async () => {
    const findings = openFindings()
    const burst = await Promise.all(
      Array.from({ length: 3000 }, (_, i) =>
        findings.raise({ key: `k${i}`, about: WEB, title: 'burst', severity: 'low' }),
      ),
    )
    expect(new Set(burst.map((f) => f.uid)).size).toBe(3000)
  })
})

describe('CursorCodec', () => {
  it('gives back what it encoded, and refuses anything else', () => {
    const codec = new CursorCodec(Buffer.alloc(16, 7))
    for (const n of [0, 1, 2 ** 40]) expect(codec.decode(codec.encode(n))).toBe(n)
    const foreign = new CursorCodec(Buffer.alloc(16, 8)).encode(1)
    for (const bad of ['', 'x', foreign, 'A'.repeat(22), 'é'.repeat(22)]) {
      expect(() => codec.decode(bad)).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' }))
    }
  })
})
