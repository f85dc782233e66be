import { describe, expect, it } from 'vitest'
import { FINDING_LIMITS } from '../../src/service/bounds.js'
import { ocsfProblems } from '../../src/service/ocsf/index.js'
import type { StoredChange } from '../../src/service/store/rows.js'
import { DB, openFindings, openStore, WEB } from './support.js'

const base = { key: 'k', about: WEB, title: 't', severity: 'high' } as const

describe('the life of a finding', () => {
  it('is create, update with the same uid, close; then the key makes a new one', async () => {
    const findings = openFindings()
    const one = await findings.raise(base)
    const two = await findings.raise({ ...base, title: 'seen again', severity: 'critical' })
    const [three] = await findings.close('k', { reason: 'the module is gone' })
    const four = await findings.raise(base)
    expect([one, two, three, four].map((f) => f?.change)).toEqual(['create', 'update', 'close', 'create'])
    expect(two.uid).toBe(one.uid)
    expect(three?.uid).toBe(one.uid)
    expect(four.uid).not.toBe(one.uid)
    expect(two).toMatchObject({ count: 2, severity: 'critical', finding: { activity_id: 2, message: 'seen again' } })
    expect(three?.finding).toMatchObject({
      activity_id: 3,
      status: 'Resolved',
      status_detail: 'the module is gone',
      count: 2,
    })
    expect(two.finding.finding_info.first_seen_time).toBe(one.finding.finding_info.first_seen_time)
    for (const f of [one, two, three, four]) expect(ocsfProblems('detection_finding', f?.finding)).toEqual([])
    const uids = [one, two, three, four].map((f) => f?.finding.metadata.uid)
    expect(new Set(uids).size).toBe(4)
  })

  it('deduplicates by key and VM', async () => {
    const findings = openFindings()
    const made = await Promise.all(
      [base, base, { ...base, about: DB }, { ...base, key: 'other' }].map((f) => findings.raise(f)),
    )
    expect(made.map((f) => f.change)).toEqual(['create', 'update', 'create', 'create'])
    expect(findings.list({ about: WEB })).toHaveLength(2)
    expect(await findings.close('k', { about: DB })).toHaveLength(1)
    expect(await findings.close('k')).toHaveLength(1)
    expect(await findings.close('k')).toHaveLength(0)
  })

  it('keeps who acknowledged it over later updates', async () => {
    const store = openStore()
    const findings = openFindings(store)
    const { uid } = await findings.raise(base)
    expect(await findings.acknowledge(uid, new Set([DB.uuid]), 'eve')).toBeUndefined()
    const change = await findings.acknowledge(uid, new Set([WEB.uuid]), 'uid 7', 'x'.repeat(5000))
    expect(change).toMatchObject({ change: 'acknowledge', status: 2 })
    const after = await findings.raise(base)
    expect(after.status).toBe('acknowledged')
    expect(after.finding.unmapped.cloudapp.acknowledged).toMatchObject({ by: 'uid 7' })
    expect(after.finding.comment).toHaveLength(FINDING_LIMITS.comment)
  })

  it('tells listeners each change once, after it is durable, in the order of its sequence', async () => {
    const store = openStore()
    const findings = openFindings(store)
    const seen: StoredChange[] = []
    findings.subscribe((changes) => {
      for (const change of changes) expect(store.get(change.uid, 'all')).toBeDefined()
      seen.push(...changes)
    })
    await Promise.all(Array.from({ length: 1500 }, (_, i) => findings.raise({ ...base, key: `k${i}` })))
    expect(seen.map((c) => c.sequence)).toEqual(Array.from({ length: 1500 }, (_, i) => i + 1))
  })

  it('refuses after shutdown and writes what waited', async () => {
    const store = openStore()
    const findings = openFindings(store)
    const waiting = findings.raise(base)
    await findings.shutdown()
    expect((await waiting).change).toBe('create')
    await expect(findings.raise(base)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
    expect(() => findings.list()).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_CLOSED' }))
  })
})
