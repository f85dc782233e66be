import { randomUUID } from 'node:crypto'
import { clientFinding } from '../client-streams.js'
import { ANSWERS, answer } from '../interface/protocol.js'
import { SEVERITIES } from '../vocabulary.js'
import { type Check, call, expect, expectCode, listed, type Opened, Skip, some } from './check.js'

const MOST = 200

const uidOf = (json: string): string => (JSON.parse(json) as { finding_info: { uid: string } }).finding_info.uid

async function one(opened: Opened) {
  const [first] = await some(opened, 1)
  if (!first) throw new Skip('there are no findings that the asker may see')
  return clientFinding(first)
}

/** `findings.list`, `get` and `acknowledge`. */
export const FINDING_CHECKS: readonly Check[] = [
  {
    name: 'findings.list',
    what: 'list answers in its form, and every finding is a valid OCSF Detection Finding',
    async run(subject) {
      const opened = await subject.open()
      const { session, service } = opened
      const page = answer('findings.list', ANSWERS.page, await call(session, () => service.findings.list({})))
      for (const finding of page.findings) clientFinding(answer('findings.list', ANSWERS.finding, finding))
    },
  },
  {
    name: 'findings.list.arguments',
    what: 'Wrong arguments of list are refused',
    async run(subject) {
      const opened = await subject.open()
      const { findings } = opened.service
      const wrong = [
        ...[{ limit: 0 }, { limit: 501 }, { limit: '1' }, { minSeverity: 'huge' }, { status: 'open' }],
        ...[{ status: ['huge'] }, { since: 'x' }, { since: 'A'.repeat(22) }, { vm: 'x'.repeat(300) }, { nonsense: 1 }],
      ]
      for (const query of wrong) {
        const what = `list(${JSON.stringify(query).slice(0, 60)})`
        await expectCode(opened, 'ERR_CLOUDAPP_INVALID_ARGUMENT', what, () => findings.list(query as never))
      }
    },
  },
  {
    name: 'findings.list.pages',
    what: 'Pages give each finding once, in one order, whatever their size',
    async run(subject) {
      const opened = await subject.open()
      const whole = (await some(opened, 30)).map(({ json }) => uidOf(json))
      const small = (await listed(opened, { limit: 3 }, 30)).map(({ json }) => uidOf(json))
      expect(new Set(small).size === small.length, 'pages of three give a finding twice')
      expect(small.join() === whole.join(), 'pages of three give other findings, or another order, than one page')
      const first = await call(opened.session, () => opened.service.findings.list({ limit: 1 }))
      expect(first.findings.length === 1, `limit 1 gives ${first.findings.length} findings`)
      expect(first.more === whole.length > 1, `after one of ${whole.length} findings, more is ${first.more}`)
    },
  },
  {
    name: 'findings.list.cursor',
    what: 'A cursor stands still while nothing changes',
    async run(subject) {
      const opened = await subject.open()
      const all = await listed(opened, { limit: 500 }, 5000)
      const since = all.at(-1)?.cursor
      if (since === undefined) throw new Skip('there are no findings that the asker may see')
      const page = await call(opened.session, () => opened.service.findings.list({ since }))
      if (page.findings.length > 0) throw new Skip('findings change meanwhile')
      expect(page.next === since, 'an empty page gives another cursor than it was asked with')
      expect(!page.more, 'an empty page says that there is more')
    },
  },
  {
    name: 'findings.list.filter',
    what: 'Filters by severity, status and VM give all that match and nothing else',
    async run(subject) {
      const opened = await subject.open()
      const all = (await some(opened, MOST)).map(clientFinding)
      const filtered = async (query: Record<string, unknown>) =>
        (await listed(opened, query, MOST)).map((wire) => clientFinding(wire).finding)
      for (const [index, minSeverity] of SEVERITIES.entries()) {
        const low = (await filtered({ minSeverity })).find((f) => f.severity_id <= index)
        expect(low === undefined, `minSeverity ${minSeverity} gives a finding of severity ${low?.severity}`)
      }
      for (const [word, id] of [
        ['open', 1],
        ['acknowledged', 2],
        ['closed', 4],
      ] as const) {
        const other = (await filtered({ status: [word] })).find((f) => f.status_id !== id)
        expect(other === undefined, `status ${word} gives a finding that is ${other?.status}`)
      }
      const vm = all[0]?.finding.resources[0]
      const about = await filtered({ vm: vm?.uid })
      const others = about.find((f) => f.resources[0]?.uid !== vm?.uid)
      expect(others === undefined, `vm ${vm?.uid} gives a finding about ${others?.resources[0]?.uid}`)
      expect(about.length > 0, `vm ${vm?.uid} gives nothing, and there are findings about it`)
      expect((await filtered({ vm: randomUUID() })).length === 0, 'a VM that does not exist has findings')
    },
  },
  {
    name: 'findings.get',
    what: 'get gives the finding that list gave',
    async run(subject) {
      const opened = await subject.open()
      const { finding } = await one(opened)
      const { uid } = finding.finding_info
      const wire = await call(opened.session, () => opened.service.findings.get(uid))
      const got = clientFinding(answer('findings.get', ANSWERS.finding, wire)).finding
      expect(got.finding_info.uid === uid, `asked for ${uid} it gives ${got.finding_info.uid}`)
      if (got.metadata.uid === finding.metadata.uid) {
        expect(JSON.stringify(got) === JSON.stringify(finding), 'get and list give the same event in different words')
      }
    },
  },
  {
    name: 'findings.unknown',
    what: 'A finding that is not there is refused in the same words by get and acknowledge, whatever is guessed',
    async run(subject) {
      const opened = await subject.open()
      const { findings } = opened.service
      const words = new Set<string>()
      for (const uid of [randomUUID(), randomUUID(), 'x']) {
        for (const work of [() => findings.get(uid), () => findings.acknowledge(uid, {})]) {
          const error = await expectCode(opened, 'ERR_CLOUDAPP_NOT_FOUND', `the uid ${uid}`, work)
          words.add(error.message.replaceAll(uid, 'UID'))
        }
      }
      expect(words.size === 1, `it is refused in ${words.size} ways: ${[...words].join(' / ').slice(0, 200)}`)
      for (const uid of [{}, 7, 'x'.repeat(200)]) {
        const get = () => findings.get(uid as never)
        await expectCode(opened, 'ERR_CLOUDAPP_INVALID_ARGUMENT', `get(${JSON.stringify(uid).slice(0, 30)})`, get)
      }
    },
  },
  {
    name: 'findings.acknowledge',
    what: 'An acknowledgement makes a finding In Progress, and once more changes nothing',
    allow: 'acknowledge',
    async run(subject) {
      const opened = await subject.open()
      const { session, service } = opened
      const [open] = await listed(opened, { status: ['open'], limit: 1 }, 1)
      if (!open) throw new Skip('there is no open finding that the asker may see')
      const uid = uidOf(open.json)
      const acknowledge = (comment: string) => call(session, () => service.findings.acknowledge(uid, { comment }))
      const { finding, change, cursor } = clientFinding(await acknowledge('conform'))
      expect(change === 'acknowledge', `the change is ${change}`)
      expect(finding.status_id === 2 && finding.activity_id === 2, `it is ${finding.status}, ${finding.activity_name}`)
      const { acknowledged } = finding.unmapped.cloudapp
      expect(acknowledged?.comment === 'conform', 'the comment is not kept in unmapped.cloudapp.acknowledged')
      const again = clientFinding(await acknowledge('again'))
      const kept = again.finding.unmapped.cloudapp.acknowledged?.comment
      expect(again.cursor === cursor && kept === 'conform', 'a second acknowledgement changes the finding')
    },
  },
]
