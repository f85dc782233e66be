import { createHash } from 'node:crypto'
import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { ARTIFACT_BYTES } from '../../src/service/artifacts/files.js'
import { FINDING_LIMITS } from '../../src/service/bounds.js'
import { Findings } from '../../src/service/findings.js'
import { ocsfProblems } from '../../src/service/ocsf/index.js'
import { collect, Served } from './served.js'
import { DB, KEEP, later, openFindings, openStore, temporaryFolder, WEB } from './support.js'

const base = { key: 'k', about: WEB, title: 't', severity: 'high' } as const
const bytes = (length: number, seed = 1) => Uint8Array.from({ length }, (_, i) => (i * seed + (i >> 8)) & 0xff)
const digestOf = (data: Uint8Array) => `sha256:${createHash('sha256').update(data).digest('hex')}`

async function* stream(...parts: Uint8Array[]) {
  yield* parts
}

describe('artifacts', () => {
  it('are kept with their finding and streamed to who may see it, checked against their digest', async () => {
    const sd = new Served()
    const data = bytes(700_000)
    const { uid, finding } = await sd.findings.raise({
      ...base,
      artifacts: [
        { name: 'dump\u001b[2J.bin', type: 'application/x-dump', data: stream(data.slice(0, 10), data.slice(10)) },
      ],
    })
    const [ref] = finding.unmapped.cloudapp.artifacts ?? []
    expect(ref).toEqual({
      digest: digestOf(data),
      bytes: 700_000,
      name: 'dump\u001b[2J.bin',
      type: 'application/x-dump',
    })
    expect(ocsfProblems('detection_finding', finding)).toEqual([])
    const client = await sd.connect('web')
    const parts = await collect(client.artifacts.read(uid, digestOf(data)))
    expect(parts.length).toBe(3)
    expect(Buffer.compare(Buffer.concat(parts), data)).toBe(0)
    expect(await collect(client.artifacts.read(uid, (await put(sd, uid, new Uint8Array())) as string))).toEqual([])
  })

  it('of another tenant are not there, in the same words as what never was', async () => {
    const sd = new Served()
    const data = bytes(100)
    const { uid } = await sd.findings.raise({ ...base, artifacts: [{ name: 'a', data }] })
    const other = await sd.connect('db')
    const { uid: own } = await sd.findings.raise({ ...base, about: DB })
    const answers: unknown[] = []
    for (const [finding, digest] of [
      [uid, digestOf(data)],
      [uid, digestOf(bytes(1))],
      ['no-such', digestOf(data)],
      [own, digestOf(data)],
    ] as const) {
      const error = await collect(other.artifacts.read(finding, digest)).catch((e: Error) => e)
      answers.push({ code: (error as { code?: string }).code, message: (error as Error).message })
    }
    expect(new Set(answers.map((a) => JSON.stringify(a))).size).toBe(1)
    expect(answers[0]).toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
  })

  it('are kept once for all findings, and go with the last that names them', async () => {
    const store = openStore()
    const findings = openFindings(store, { ...KEEP, maxCount: 1 })
    const data = bytes(1000)
    const artifacts = [{ name: 'a', data }]
    await findings.raise({ ...base, artifacts })
    await findings.raise({ ...base, about: DB, artifacts })
    const folder = `${store.path}-artifacts`
    expect(readdirSync(folder)).toHaveLength(1)
    expect(findings.artifacts.total).toBe(1000)
    findings.artifacts.drop(store.retain({ ...KEEP, maxCount: 1, batch: 10 }).artifacts)
    expect(readdirSync(folder)).toHaveLength(1)
    findings.artifacts.drop(store.retain({ ...KEEP, maxCount: 0, batch: 10 }).artifacts)
    expect(readdirSync(folder)).toEqual([])
    expect(findings.artifacts.total).toBe(0)
  })

  it('never keep a finding from being raised: what can not be kept is stated', async () => {
    const sd = new Served()
    const failing = {
      async *[Symbol.asyncIterator]() {
        yield bytes(10)
        throw new Error('the VM has gone')
      },
    }
    const raised = await sd.findings.raise({
      ...base,
      artifacts: [
        { name: 'bad', data: failing },
        { name: 'long', data: stream(new Uint8Array(ARTIFACT_BYTES - 5), bytes(10)) },
        ...Array.from({ length: 20 }, (_, i) => ({ name: `n${i}`, data: bytes(i + 1) })),
      ],
    })
    const { cut = [], artifacts = [] } = raised.finding.unmapped.cloudapp
    expect(cut).toEqual([
      'artifacts: 16 of 22',
      'artifacts[0]: not kept (the source failed)',
      `artifacts[1]: the first ${ARTIFACT_BYTES} bytes`,
    ])
    expect(raised.finding.metadata.is_truncated).toBe(true)
    expect(artifacts).toHaveLength(15)
    expect(artifacts.find((a) => a.name === 'long')).toMatchObject({ bytes: ARTIFACT_BYTES, truncated: true })
    expect(sd.errors).toHaveLength(1)
    for (const artifacts of [
      [{ name: 'x' }],
      [{ name: 'x', data: 'text' }],
      [{ name: 'x', data: bytes(1), typ: '' }],
    ]) {
      await expect(sd.findings.raise({ ...base, artifacts } as never)).rejects.toMatchObject({
        code: expect.stringMatching(/INVALID_ARGUMENT|UNKNOWN_OPTION/),
      })
    }
  })

  it('stay within the bytes they may take; the VM that has most gives way', async () => {
    const sd = new Served(openStore(), { ...KEEP, maxArtifactBytes: 10_000 })
    const quiet = await sd.findings.raise({ ...base, about: DB, artifacts: [{ name: 'q', data: bytes(3000, 3) }] })
    for (let i = 0; i < 12; i++) {
      await sd.findings.raise({ ...base, key: `k${i}`, artifacts: [{ name: 'f', data: bytes(2000 + i, 5) }] })
      expect(sd.findings.artifacts.total).toBeLessThanOrEqual(10_000)
    }
    const [own] = quiet.finding.unmapped.cloudapp.artifacts ?? []
    const client = await sd.connect('db')
    expect(Buffer.concat(await collect(client.artifacts.read(quiet.uid, own?.digest ?? '')))).toHaveLength(3000)
    const tooLarge = await sd.findings.raise({ ...base, key: 'x', artifacts: [{ name: 'x', data: bytes(10_001) }] })
    expect(tooLarge.finding.unmapped.cloudapp.cut).toEqual(['artifacts[0]: not kept (ERR_CLOUDAPP_LIMIT)'])
  })

  it('of one finding are at most sixteen: the newest', async () => {
    const findings = openFindings()
    for (let i = 0; i < 20; i++) await findings.raise({ ...base, artifacts: [{ name: `n${i}`, data: bytes(i + 1) }] })
    const { artifacts = [] } = findings.list()[0]?.unmapped.cloudapp ?? {}
    expect(artifacts).toHaveLength(FINDING_LIMITS.artifacts)
  })

  it('that a crash left behind are removed, those of findings are still there', async () => {
    const path = join(temporaryFolder(), 'f.db')
    const first = openStore(path)
    const findings = new Findings(first, KEEP, () => {})
    const data = bytes(50)
    await findings.raise({ ...base, artifacts: [{ name: 'a', data }] })
    await findings.shutdown()
    const orphan = join(`${path}-artifacts`, 'f'.repeat(64))
    writeFileSync(orphan, 'nobody names it')
    writeFileSync(join(`${path}-artifacts`, 'x.part'), 'half')
    const again = new Findings(openStore(path), KEEP, () => {})
    later(() => again.shutdown())
    expect(existsSync(orphan)).toBe(false)
    expect(readdirSync(`${path}-artifacts`)).toEqual([digestOf(data).slice(7)])
    expect(again.artifacts.total).toBe(50)
  })

  it('that are not what their digest says are not believed', async () => {
    const sd = new Served()
    const data = bytes(300_000)
    const { uid } = await sd.findings.raise({ ...base, artifacts: [{ name: 'a', data }] })
    const file = join(`${sd.store.path}-artifacts`, digestOf(data).slice(7))
    writeFileSync(file, bytes(300_000, 7))
    const client = await sd.connect('web')
    await expect(collect(client.artifacts.read(uid, digestOf(data)))).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_PROTOCOL',
    })
    writeFileSync(file, bytes(10))
    await expect(collect(client.artifacts.read(uid, digestOf(data)))).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_STORE',
    })
  })
})

async function put(sd: Served, uid: string, data: Uint8Array): Promise<string | undefined> {
  const again = await sd.findings.raise({ ...base, artifacts: [{ name: 'empty', data }] })
  expect(again.uid).toBe(uid)
  return again.finding.unmapped.cloudapp.artifacts?.find(({ name }) => name === 'empty')?.digest
}
