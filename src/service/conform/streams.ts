import { createHash, randomUUID } from 'node:crypto'
import { clientFinding } from '../client-streams.js'
import { ANSWERS, answer, INTERFACE_LIMITS, type WireRecord, type WireWatch } from '../interface/protocol.js'
import { type Check, call, expect, expectCode, listed, type Opened, Skip } from './check.js'

const records = async ({ session }: Opened, watch: WireWatch, options: { max?: number; waitMs?: number } = {}) =>
  answer('watch.next', ANSWERS.records, await call(session, () => watch.next(options))).records

/** Everything up to the live mark. */
async function stored(opened: Opened, watch: WireWatch, max: number): Promise<WireRecord[]> {
  const all: WireRecord[] = []
  for (;;) {
    const some = await records(opened, watch, { max })
    expect(some.length > 0, 'next gives nothing before the live mark')
    const findings = some.filter((record) => record.type === 'finding')
    expect(findings.length <= max, `next with max ${max} gives ${findings.length} findings`)
    all.push(...some)
    if (some.some((record) => record.type === 'live') || all.length > 50_000) return all
  }
}

/** Watches, runs and artifacts. */
export const STREAM_CHECKS: readonly Check[] = [
  {
    name: 'watch.list-then-live',
    what: 'A watch gives what list gives, then one live mark',
    async run(subject) {
      const opened = await subject.open()
      const { session, service } = opened
      const known = (await listed(opened, { limit: 500 }, 50_000)).map(({ json }) => json)
      const watch = await call(session, () => service.findings.watch({}))
      const given = await stored(opened, watch, 50)
      expect(given.at(-1)?.type === 'live', 'records come after the live mark in the answer that has it')
      const findings = given.filter((record) => record.type === 'finding')
      for (const record of findings) clientFinding(record)
      const texts = new Set(findings.map(({ json }) => json))
      const missing = known.find((json) => !texts.has(json))
      if (missing === undefined) return
      // It may have changed since it was listed.
      const { uid } = clientFinding({ cursor: '', change: 'create', json: missing }).finding.finding_info
      const there = findings.some((record) => clientFinding(record).finding.finding_info.uid === uid)
      expect(there, `the watch does not give the finding ${uid} that list gives`)
    },
  },
  {
    name: 'watch.resume',
    what: 'A watch with since gives only what changed after it',
    async run(subject) {
      const opened = await subject.open()
      const { session, service } = opened
      const all = await listed(opened, { limit: 500 }, 5000)
      const half = all[Math.floor((all.length - 1) / 2)]
      if (!half) throw new Skip('there are no findings that the asker may see')
      const watch = await call(session, () => service.findings.watch({ since: half.cursor }))
      const given = (await stored(opened, watch, 100)).filter((record) => record.type === 'finding')
      const before = all.slice(0, all.indexOf(half) + 1).map(({ json }) => json)
      const repeated = given.find((record) => before.includes(record.json))
      expect(repeated === undefined, 'it gives again what was given up to the cursor')
      for (const { json } of all.slice(all.indexOf(half) + 1)) {
        const known = given.some((record) => record.json === json)
        expect(known || given.length > all.length, 'it leaves out a finding after the cursor')
      }
    },
  },
  {
    name: 'watch.wait',
    what: 'next waits no longer than waitMs, and gives nothing if nothing happened',
    async run(subject) {
      const opened = await subject.open()
      const watch = await call(opened.session, () => opened.service.findings.watch({ vm: randomUUID() }))
      await stored(opened, watch, 10)
      const begun = performance.now()
      const given = await records(opened, watch, { waitMs: 300 })
      const took = performance.now() - begun
      expect(given.length === 0, 'a watch of a VM that does not exist gives records')
      expect(took >= 250, `it was asked to wait 300 ms and waited ${Math.round(took)}`)
      for (const options of [{ waitMs: 30_001 }, { max: 501 }, { max: 0 }, { nonsense: 1 }]) {
        const what = `next(${JSON.stringify(options)})`
        await expectCode(opened, 'ERR_CLOUDAPP_INVALID_ARGUMENT', what, () => watch.next(options))
      }
    },
  },
  {
    name: 'watch.one-next',
    what: 'A watch takes one next at a time, and none after close',
    async run(subject) {
      const opened = await subject.open()
      const watch = await call(opened.session, () => opened.service.findings.watch({ vm: randomUUID() }))
      await stored(opened, watch, 10)
      const waiting = call(opened.session, () => watch.next({ waitMs: 5000 }))
      waiting.catch(() => undefined)
      const second = () => watch.next({ waitMs: 0 })
      await expectCode(opened, 'ERR_CLOUDAPP_INVALID_ARGUMENT', 'a second next', second)
      await call(opened.session, async () => watch.close())
      await expectCode(opened, 'ERR_CLOUDAPP_CLOSED', 'next after close', () => watch.next({ waitMs: 0 }))
    },
  },
  {
    name: 'watch.limit',
    what: 'A session has at most 16 watches, and a closed one makes room',
    async run(subject) {
      const opened = await subject.open()
      const watch = () => opened.service.findings.watch({})
      const open: WireWatch[] = []
      for (let i = 0; i < INTERFACE_LIMITS.watches; i++) open.push(await call(opened.session, watch))
      await expectCode(opened, 'ERR_CLOUDAPP_LIMIT', 'a seventeenth watch', watch)
      await call(opened.session, async () => open[0]?.close())
      await call(opened.session, watch)
    },
  },
  {
    name: 'run.unknown',
    what: 'A run of a VM that does not exist is not found',
    async run(subject) {
      const opened = await subject.open()
      const vm = randomUUID()
      await expectCode(opened, 'ERR_CLOUDAPP_NOT_FOUND', 'a run of an unknown VM', () => opened.service.run({ vm }))
      const wrong = () => opened.service.run({ nonsense: 1 } as never)
      await expectCode(opened, 'ERR_CLOUDAPP_INVALID_ARGUMENT', 'run({"nonsense":1})', wrong)
    },
  },
  {
    name: 'run.events',
    what: 'A run tells queued, started, finished or failed for each VM, and done last',
    allow: 'run',
    async run(subject) {
      const opened = await subject.open()
      const { session, service } = opened
      const run = await call(session, () => service.run({})).catch((error) => {
        if (error.code === 'ERR_CLOUDAPP_NOT_FOUND') throw new Skip('there is nothing to scan for the asker')
        throw error
      })
      const events: string[] = []
      while (events.at(-1) !== 'done') {
        const answered = await call(session, () => run.next({}))
        for (const { type } of answer('run.next', ANSWERS.runEvents, answered).events) events.push(type)
      }
      expect(events[0] === 'queued', `it begins with ${events[0]}`)
      const ends = events.filter((type) => type === 'finished' || type === 'failed').length
      const queued = events.filter((type) => type === 'queued').length
      expect(ends === queued, `${queued} are queued and ${ends} ended`)
      const after = answer('run.next', ANSWERS.runEvents, await call(session, () => run.next({ waitMs: 0 })))
      expect(after.events.length === 0, 'there are events after done')
    },
  },
  {
    name: 'run.cancel',
    what: 'A run that is given up ends as cancelled, or had ended',
    allow: 'run',
    async run(subject) {
      const opened = await subject.open()
      const { session, service } = opened
      const run = await call(session, () => service.run({})).catch((error) => {
        if (error.code === 'ERR_CLOUDAPP_NOT_FOUND') throw new Skip('there is nothing to scan for the asker')
        throw error
      })
      await call(session, async () => run.cancel())
      for (let turns = 0; turns < 100; turns++) {
        const { events } = answer('run.next', ANSWERS.runEvents, await call(session, () => run.next({ waitMs: 5000 })))
        if (events.some((event) => event.type === 'done')) return
        expect(events.length > 0, 'it was given up and does not end')
      }
    },
  },
  {
    name: 'artifacts.unknown',
    what: 'An artifact that no finding of the asker names is not found',
    async run(subject) {
      const opened = await subject.open()
      const { artifacts } = opened.service
      const digest = `sha256:${'0'.repeat(64)}`
      const read = () => artifacts.read({ finding: randomUUID(), digest })
      await expectCode(opened, 'ERR_CLOUDAPP_NOT_FOUND', 'an unknown artifact', read)
      for (const wrong of [{}, { finding: 'x', digest: '../../etc/passwd' }, { finding: 'x', digest, at: -1 }]) {
        const what = `artifacts.read(${JSON.stringify(wrong).slice(0, 60)})`
        await expectCode(opened, 'ERR_CLOUDAPP_INVALID_ARGUMENT', what, () => artifacts.read(wrong as never))
      }
    },
  },
  {
    name: 'artifacts.read',
    what: 'The bytes of an artifact are those of its digest, whole and in part',
    async run(subject) {
      const opened = await subject.open()
      const { session, service } = opened
      const named = (await listed(opened, { limit: 500 }, 5000)).map(clientFinding).find(({ finding }) => {
        return (finding.unmapped.cloudapp.artifacts?.length ?? 0) > 0
      })
      const ref = named?.finding.unmapped.cloudapp.artifacts?.[0]
      if (!named || !ref) throw new Skip('no finding that the asker may see names an artifact')
      const asked = { finding: named.finding.finding_info.uid, digest: ref.digest }
      const read = async (at: number, length?: number) =>
        answer(
          'artifacts.read',
          ANSWERS.artifact,
          await call(session, () => service.artifacts.read({ ...asked, at, ...(length !== undefined && { length }) })),
        )
      const hash = createHash('sha256')
      let at = 0
      for (;;) {
        const { bytes, total } = await read(at)
        expect(total === ref.bytes, `the finding says ${ref.bytes} bytes, the artifact ${total}`)
        hash.update(bytes)
        at += bytes.length
        if (at >= total) break
        expect(bytes.length > 0, `it gives nothing at ${at} of ${total}`)
      }
      expect(`sha256:${hash.digest('hex')}` === ref.digest, 'the bytes are not those of the digest')
      expect((await read(0, 1)).bytes.length === Math.min(1, ref.bytes), 'length is not kept to')
      expect((await read(ref.bytes)).bytes.length === 0, 'there are bytes past the end')
    },
  },
]
