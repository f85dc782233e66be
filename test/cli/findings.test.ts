import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { KeyPair } from '../../src/capabilities/keys.js'
import { signManifest } from '../../src/capabilities/manifest-sign.js'
import { ServiceDomain } from '../../src/service/domain.js'
import { assertOcsf } from '../../src/service/ocsf/index.js'
import { cloudapp } from './cloudapp.js'

const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-findings-'))
const endpoint = path.join(folder, 'sd.sock')
const about = { name: 'web-1', uuid: '5e1fd0b4-6a71-4b5c-9d65-6f0a6e2f3f11', bootNonce: '0'.repeat(32) }
let sd: ServiceDomain

beforeAll(async () => {
  sd = await ServiceDomain.start({
    manifest: signManifest(
      {
        cloudapp: 1,
        name: 'ids',
        title: 'Test IDS',
        version: '1.0.0',
        vendor: 'Acme',
        rights: [{ right: 'memory.read', reason: 'to look for hidden processes' }],
        publishes: ['findings'],
      },
      KeyPair.generate(),
    ),
    key: KeyPair.generate(),
    broker: path.join(folder, 'no-broker.sock'),
    listen: endpoint,
    store: path.join(folder, 'findings.db'),
  })
  await sd.findings.raise({ id: 'hidden', about, title: 'Hidden process \u001b[8mminer', severity: 'high' })
  await sd.findings.raise({ id: 'odd', about, title: 'Odd bytes', severity: 'low' })
})
afterAll(async () => {
  await sd?.close()
  rmSync(folder, { recursive: true })
})

describe('cloudapp findings list', () => {
  it('prints a table in which a hostile title can do nothing', async () => {
    const { code, stdout, stderr } = await cloudapp(['findings', 'list', '--endpoint', endpoint])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/^High +Hidden process .*web-1/m)
    expect(stdout).not.toContain('\u001b')
    expect(stdout.trim().split('\n')).toHaveLength(3)
  })

  it('prints OCSF objects, filtered', async () => {
    const all = JSON.parse((await cloudapp(['findings', 'list', '--endpoint', endpoint, '--json'])).stdout)
    expect(all).toHaveLength(2)
    for (const finding of all) assertOcsf('detection_finding', finding)
    const filters = ['--min-severity', 'high', '--status', 'open', '--vm', 'web-1', '--limit', '5', '--json']
    const [only, ...rest] = JSON.parse(
      (await cloudapp(['findings', 'list', '--endpoint', endpoint, ...filters])).stdout,
    )
    expect(rest).toEqual([])
    expect(only).toMatchObject({ class_uid: 2004, severity: 'High' })
  })

  it('refuses a severity that is none, and explains a service domain that is not there', async () => {
    const wrong = await cloudapp(['findings', 'list', '--endpoint', endpoint, '--min-severity', 'hihg'])
    expect(wrong).toMatchObject({ code: 2, stderr: expect.stringContaining('one of informational, low') })
    const absent = await cloudapp(['findings', 'list', '--endpoint', path.join(folder, 'none.sock')])
    expect(absent.code).toBe(1)
    expect(absent.stderr).toMatch(/code: ERR_CLOUDAPP_/)
  })
})
