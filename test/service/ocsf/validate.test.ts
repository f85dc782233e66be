import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { draftFinding } from '../../../src/service/draft.js'
import { findingEvent } from '../../../src/service/finding-event.js'
import { apiActivity, assertOcsf, ocsfProblems } from '../../../src/service/ocsf/index.js'
import { PRODUCT, WEB } from '../support.js'

const state = {
  uid: 'u-1',
  change: 'create',
  status: 1,
  revision: 1,
  count: 1,
  first: 1e12,
  last: 1e12,
  time: 1e12,
} as const

function event(): Record<string, unknown> {
  const draft = draftFinding({
    key: 'hidden-task:4242',
    about: WEB,
    title: 'Hidden process',
    severity: 'critical',
    confidence: 95,
    description: 'A task is in the pid IDR and not in the task list.',
    types: ['rootkit'],
    attacks: [{ technique: 'T1014', name: 'Rootkit', tactic: 'TA0005', tacticName: 'Defense Evasion' }],
    analytic: { name: 'cross-view', type: 'rule', version: '1' },
    right: 'memory.read',
    block: 'ab'.repeat(32),
    remediation: 'Take the VM off the network.',
    evidence: [
      { name: 'task', process: { pid: 4242, name: 'miner', uid: 0, parent: { pid: 1 } }, data: { at: 0xffff_8880n } },
      { name: 'module', module: 'evil', file: '/tmp/evil.ko' },
    ],
  })
  return JSON.parse(JSON.stringify(findingEvent(draft, state, PRODUCT)))
}

describe('a Detection Finding', () => {
  it('passes as we emit it', () => {
    expect(ocsfProblems('detection_finding', event())).toEqual([])
  })

  // biome-ignore lint/suspicious/noExplicitAny: the point is to write what the types forbid
  it.each<[string, (e: Record<string, any>) => void, string]>([
    ['an unknown attribute', (e) => (e.foo = 1), 'foo'],
    ['an unknown attribute deep inside', (e) => (e.evidences[0].process.comm = 'x'), 'evidences[0].process.comm'],
    ['a missing required attribute', (e) => delete e.severity_id, 'severity_id'],
    ['a missing required attribute of an object', (e) => delete e.finding_info.uid, 'finding_info.uid'],
    ['a wrong type', (e) => (e.time = '2024-01-01'), 'time'],
    ['a fraction', (e) => (e.count = 1.5), 'count'],
    ['an integer beyond 32 bits', (e) => (e.count = 2 ** 40), 'count'],
    ['a value outside its enumeration', (e) => (e.severity_id = 7), 'severity_id'],
    ['a caption of another value', (e) => (e.severity = 'Low'), 'severity_id'],
    ['another class', (e) => (e.class_uid = 2001), 'class_uid'],
    ['a type_uid of another activity', (e) => (e.type_uid = 200_403), 'type_uid'],
    ['another version', (e) => (e.metadata.version = '1.3.0'), 'metadata.version'],
    ['no array where one belongs', (e) => (e.evidences = {}), 'evidences'],
    ['an object that is not emitted', (e) => (e.malware = [{}]), 'malware[0]'],
    ['a class instance', (e) => (e.unmapped = new Map()), 'unmapped'],
  ])('is refused with %s', (_, spoil, path) => {
    const bad = event()
    spoil(bad)
    expect(ocsfProblems('detection_finding', bad).map((p) => p.path)).toContain(path)
    expect(() => assertOcsf('detection_finding', bad)).toThrow(
      expect.objectContaining({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' }),
    )
  })

  it('is checked totally and within bounds, whatever it is', () => {
    fc.assert(fc.property(fc.anything(), (value) => ocsfProblems('detection_finding', value).length > 0))
    let deep: unknown = 1
    for (let i = 0; i < 10_000; i++) deep = { deep }
    expect(ocsfProblems('detection_finding', { ...event(), unmapped: deep })[0]?.message).toMatch(/deeper than/)
  })
})

describe('API Activity', () => {
  it('passes as exported, and says what was refused', () => {
    const made = apiActivity({
      time: 1e12,
      operation: 'memory.write',
      activity: 'update',
      uid: 'r-1',
      actor: { uid: 'ed25519:abc', channel: 'unix' },
      vm: WEB,
      error: { code: 'ERR_CLOUDAPP_DENIED', message: 'memory.write is not held' },
      product: PRODUCT,
    })
    expect(ocsfProblems('api_activity', made)).toEqual([])
    expect(made).toMatchObject({ class_uid: 6003, type_uid: 600_303, status: 'Failure', severity: 'Medium' })
  })
})
