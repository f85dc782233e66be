import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { AuditLog, headToText } from '../../src/broker/audit/index.js'
import { KeyPair } from '../../src/capabilities/keys.js'
import { ocsfProblems } from '../../src/service/ocsf/index.js'
import { cloudapp } from './cloudapp.js'

const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-audit-'))
afterAll(() => rmSync(folder, { recursive: true }))

const log = path.join(folder, 'audit.log')
const head = path.join(folder, 'head.json')
const key = KeyPair.generate()
let whole: Buffer

beforeAll(async () => {
  const audit = await AuditLog.open({ path: log, key })
  for (let i = 0; i < 5; i++) {
    await audit.append({
      action: 'memory.read',
      outcome: 'allowed',
      vm: 'web-1',
      right: 'memory.read',
      details: { bytes: 8 },
    })
  }
  await audit.append({ action: 'memory.write', outcome: 'refused', vm: 'web-\u001b[2J1', code: 'ERR_CLOUDAPP_DENIED' })
  writeFileSync(head, headToText(await audit.head()))
  await audit.close()
  whole = readFileSync(log)
})

const verify = (...more: string[]) => cloudapp(['audit', 'verify', log, '--broker-key', key.publicKey, ...more])

describe('cloudapp audit', () => {
  it('verifies a sound log', async () => {
    writeFileSync(log, whole)
    const { code, stdout } = await verify('--head', head)
    expect({ code, stdout }).toMatchObject({ code: 0, stdout: expect.stringMatching(/^sound: /) })
    const report = JSON.parse((await verify('--json')).stdout)
    expect(report).toMatchObject({ ok: true, faults: [] })
  })

  it('says that without a head a cut end is not seen', async () => {
    expect((await verify()).stdout).toContain('--head')
  })

  it('finds one changed byte', async () => {
    const changed = Buffer.from(whole)
    const at = changed.indexOf('memory.read') + 7
    changed[at] = (changed[at] ?? 0) ^ 1
    writeFileSync(log, changed)
    const { code, stdout, stderr } = await verify()
    expect(code).toBe(1)
    expect(stdout).toMatch(/^NOT SOUND/)
    expect(stderr).toMatch(/audit\.log:\d+: /)
    const json = await verify('--json')
    expect(json.code).toBe(1)
    expect(JSON.parse(json.stdout)).toMatchObject({ ok: false })
  })

  it('finds a cut tail with the head that was handed out', async () => {
    const lines = whole.toString('latin1').split('\n')
    writeFileSync(log, `${lines.slice(0, 3).join('\n')}\n`, 'latin1')
    expect((await verify('--head', head)).code).toBe(1)
  })

  it("does not take another broker's key for this one's", async () => {
    writeFileSync(log, whole)
    expect((await cloudapp(['audit', 'verify', log, '--broker-key', KeyPair.generate().publicKey])).code).toBe(1)
  })

  it('exports OCSF events that hold to the schema, a line each, of a log that is sound', async () => {
    writeFileSync(log, whole)
    const { code, stdout } = await cloudapp(['audit', 'export', log, '--broker-key', key.publicKey])
    expect(code).toBe(0)
    const events = stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line))
    for (const event of events) expect(ocsfProblems('api_activity', event)).toEqual([])
    const report = JSON.parse((await verify('--json')).stdout)
    expect(events).toHaveLength(report.records)
    const reads = events.filter(({ api }) => api.operation === 'memory.read')
    expect(reads).toHaveLength(5)
    expect(reads[0]).toMatchObject({
      ...{ class_uid: 6003, activity_name: 'Read', status: 'Success', resources: [{ name: 'web-1' }] },
      api: { request: { data: { right: 'memory.read', details: { bytes: 8 } } } },
    })
    const [refused] = events.filter(({ status }) => status === 'Failure')
    expect(refused).toMatchObject({ activity_name: 'Update', severity: 'Medium', status_code: 'ERR_CLOUDAPP_DENIED' })
    expect(stdout).not.toContain('\u001b')
    const some = await cloudapp(['audit', 'export', log, '--refused'])
    expect(some.stdout.trim().split('\n')).toHaveLength(1)
    writeFileSync(log, whole.toString('latin1').replace('"bytes":8', '"bytes":9'))
    const changed = await cloudapp(['audit', 'export', log, '--broker-key', key.publicKey])
    expect(changed).toMatchObject({ code: 1, stdout: '', stderr: expect.stringMatching(/not sound/) })
    writeFileSync(log, whole)
  })

  it('shows records, filtered, with control characters escaped', async () => {
    writeFileSync(log, whole)
    const refused = await cloudapp(['audit', 'show', log, '--refused'])
    expect(refused.stdout).toContain('web-\\x1b[2J1')
    expect(refused.stdout).not.toContain('\u001b')
    expect(refused.stdout.trim().split('\n')).toHaveLength(2)
    const json = JSON.parse(
      (await cloudapp(['audit', 'show', log, '--action', 'memory', '--last', '3', '--json'])).stdout,
    )
    expect(json.map((record: { entry: { action: string } }) => record.entry.action)).toEqual([
      'memory.read',
      'memory.read',
      'memory.write',
    ])
  })
})
