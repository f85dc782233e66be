import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { draftFinding } from '../../src/service/draft.js'
import { findingEvent } from '../../src/service/finding-event.js'
import { escapeText, findingsTable } from '../../src/service/table.js'
import { PRODUCT, WEB } from './support.js'

const at = Date.UTC(2026, 0, 2, 3, 4, 5)

function finding(title: string, name: string, vm = 'web-1', uid = 'u') {
  const draft = draftFinding({
    key: 'k',
    about: { ...WEB, name: vm },
    title,
    severity: 'critical',
    evidence: [{ process: { pid: 4242, name } }, { module: 'evil' }, { process: { pid: 4242, name } }],
  })
  const state = {
    uid,
    change: 'create',
    status: 1,
    revision: 1,
    count: 7,
    first: at - 86_400_000,
    last: at,
    time: at,
  } as const
  return findingEvent(draft, state, PRODUCT)
}

describe('findingsTable', () => {
  it('shows what a person looks for', () => {
    expect(findingsTable([finding('Hidden process', 'miner')], { width: 140, now: at })).toBe(
      [
        'SEVERITY  TITLE           VM     PROCESS / MODULE   STATUS  FIRST SEEN         LAST SEEN  COUNT  UID',
        'Critical  Hidden process  web-1  miner[4242], evil  New     2026-01-01 03:04Z  03:04:05Z      7  u',
        '',
      ].join('\n'),
    )
  })

  it('tells findings apart by the end of the uid, whole also on a narrow terminal', () => {
    const uids = ['019a-7000-1111aaaabbbb', '019a-7000-2222aaaabbbb', '019a-7000-3333ccccdddd']
    const ends = (of: string[], width: number) =>
      findingsTable(
        of.map((uid) => finding('Hidden process '.repeat(9), 'miner', 'web-1', uid)),
        { width, now: at },
      )
        .trimEnd()
        .split('\n')
        .slice(1)
        .map((line) => line.split(/ +/).at(-1))
    expect(ends(uids.slice(1), 79)).toEqual(['aaaabbbb', 'ccccdddd'])
    expect(ends(uids, 79)).toEqual(['1aaaabbbb', '2aaaabbbb', '3ccccdddd'])
    expect(ends([uids[0] as string, uids[0] as string], 200)).toEqual(['aaaabbbb', 'aaaabbbb'])
  })

  it('has one line for each finding, within the width, whatever the strings hold', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), fc.integer({ min: 90, max: 200 }), (text, width) => {
        const table = findingsTable([finding(text, text, text), finding('plain', 'plain')], { width, now: at })
        expect(table.split('\n')).toHaveLength(4)
        expect(table.replaceAll('\n', '')).not.toMatch(/\p{C}/u)
        for (const line of table.split('\n')) expect([...line].length).toBeLessThanOrEqual(width)
      }),
      { numRuns: 50 },
    )
  }, 30_000)

  it('escapes what moves the cursor, hides or turns text around', () => {
    expect(escapeText('a\u001b[2Jb\r\n\u202egnp\u200b\u0007\u009b')).toBe(
      'a\\x1b[2Jb\\r\\n\\u{202e}gnp\\u{200b}\\x07\\x9b',
    )
    expect(escapeText('käse 日本')).toBe('käse 日本')
  })

  it('keeps columns aligned beside wide letters', () => {
    const [head = '', wide = '', plain = ''] = findingsTable([finding('日本語', 'x'), finding('abcdef', 'x')], {
      width: 140,
      now: at,
    }).split('\n')
    expect(plain.indexOf('web-1')).toBe(head.indexOf('VM'))
    expect(wide.indexOf('web-1')).toBe(head.indexOf('VM') - 3)
  })

  it('colours only when asked', () => {
    expect(findingsTable([finding('t', 'n')], { color: true, now: at })).toContain('\u001b[1;31mCritical')
    expect(findingsTable([finding('t', 'n')], { now: at })).not.toContain('\u001b')
  })
})
