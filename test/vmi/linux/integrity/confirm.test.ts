import { expect, test } from 'vitest'
import { confirm } from '../../../../src/vmi/linux/integrity/confirm.js'
import type { Candidate } from '../../../../src/vmi/linux/integrity/hit.js'

const candidate = (id: string, looks: number, identity = id): Candidate => ({
  hit: { id, kind: 'hidden-process', title: id, severity: 'critical', evidence: { data: {} } },
  identity,
  looks,
})

/** Looks that show one list of candidates after the other, the last one again and again. */
function looks(...each: Candidate[][]): { look: () => Promise<Candidate[]>; count: () => number } {
  let calls = 0
  return { look: async () => each[Math.min(calls++, each.length - 1)] as Candidate[], count: () => calls }
}

function runningClock(): () => Promise<{ now: bigint; still: boolean }> {
  let now = 0n
  return async () => ({ now: now++, still: false })
}

test('nothing found takes one look', async () => {
  const { look, count } = looks([])
  expect(await confirm(look, { clock: runningClock() })).toEqual([])
  expect(count()).toBe(1)
})

test('what stays is a hit after as many looks as it needs', async () => {
  const { look, count } = looks([candidate('stays', 3)])
  const [hit] = await confirm(look, { clock: runningClock() })
  expect(hit).toMatchObject({ id: 'stays', confidence: 'high' })
  expect(count()).toBe(3)
})

test('what is gone at a later look is no hit, nor is another thing with its name', async () => {
  const { look } = looks(
    [candidate('gone', 3), candidate('module at the same address', 3, 'frame 1')],
    [candidate('module at the same address', 3, 'frame 2')],
  )
  expect(await confirm(look, { clock: runningClock() })).toEqual([])
})

test('what shows up only at a later look has to wait for the next inspection', async () => {
  const { look } = looks([candidate('first', 2)], [candidate('first', 2), candidate('late', 2)])
  const hits = await confirm(look, { clock: runningClock() })
  expect(hits.map((hit) => hit.id)).toEqual(['first'])
})

test('what changes its identity between looks but stays at its place is a hit in the end', async () => {
  let calls = 0
  const look = async () => [{ ...candidate('flips', 4, `start time ${calls++}`), place: 'one task_struct' }]
  expect(await confirm(look, { clock: runningClock() })).toHaveLength(1)
  expect(calls).toBe(16)
})

test('a guest that shows something new at each look ends the looking', async () => {
  let calls = 0
  const look = async () => [{ ...candidate('new', 4, `${calls}`), place: `${calls++}` }]
  expect(await confirm(look, { clock: runningClock() })).toEqual([])
  expect(calls).toBe(2)
})

test('a guest that stands still can not confirm: medium confidence', async () => {
  const { look } = looks([candidate('frozen', 2)])
  const [hit] = await confirm(look, { clock: async () => ({ now: 7n, still: false }) })
  expect(hit?.confidence).toBe('medium')
})

test('an abort ends the waiting', async () => {
  const abort = new AbortController()
  const { look } = looks([candidate('stays', 100)])
  const waiting = confirm(look, { clock: runningClock(), signal: abort.signal })
  abort.abort()
  await expect(waiting).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_ABORTED' })
})

test('a paused guest is looked at once more, and not waited for', async () => {
  const { look, count } = looks(
    [candidate('gone when it stopped', 16), candidate('stays', 16)],
    [candidate('stays', 16)],
  )
  const hits = await confirm(look, { clock: async () => ({ now: 7n, still: true }) })
  expect(hits).toMatchObject([{ id: 'stays', confidence: 'medium' }])
  expect(count()).toBe(2)
})
