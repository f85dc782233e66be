import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { KeyPair } from '../../src/capabilities/keys.js'
import { signManifest } from '../../src/capabilities/manifest-sign.js'
import { ServiceDomain } from '../../src/service/domain.js'
import { assertOcsf } from '../../src/service/ocsf/index.js'
import { cloudapp } from './cloudapp.js'

const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-findings-'))
const endpoint = path.join(folder, 'sd.sock')
const about = { name: 'web-1', uuid: '5e1fd0b4-6a71-4b5c-9d65-6f0a6e2f3f11', bootNonce: '0'.repeat(32) }
let sd: ServiceDomain
const running: ChildProcess[] = []
const main = path.resolve(import.meta.dirname, '../../dist/cli/main.js')

const key = KeyPair.generate()
const start = () =>
  ServiceDomain.start({
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
    key: key,
    broker: path.join(folder, 'no-broker.sock'),
    listen: endpoint,
    store: path.join(folder, 'findings.db'),
  })

beforeAll(async () => {
  sd = await start()
  await sd.findings.raise({ id: 'hidden', about, title: 'Hidden process \u001b[8mminer', severity: 'high' })
  await sd.findings.raise({ id: 'odd', about, title: 'Odd bytes', severity: 'low' })
})
afterAll(async () => {
  for (const child of running) child.kill()
  await sd?.close()
  rmSync(folder, { recursive: true })
})

const lines = (text: string) => text.trimEnd().split('\n')

/** Starts a command that goes on; ended after the tests. */
function goesOn(args: readonly string[]) {
  const child = spawn(process.execPath, [main, ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
  running.push(child)
  return { child, lines: createInterface({ input: child.stdout })[Symbol.asyncIterator]() }
}

describe('cloudapp findings list', () => {
  it('prints a table in which a hostile title can do nothing', async () => {
    const { code, stdout, stderr } = await cloudapp(['findings', 'list', '--endpoint', endpoint])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/^High +Hidden process .*web-1/m)
    expect(stdout).not.toContain('\u001b')
    expect(stdout.trim().split('\n')).toHaveLength(3)
  })

  it('takes a path as the shell shows it, from the folder it is in', async () => {
    for (const relative of ['sd.sock', 'unix:sd.sock', './sd.sock']) {
      const listed = await cloudapp(['findings', 'list', '--endpoint', relative, '--json'], {}, folder)
      expect(JSON.parse(listed.stdout)).toHaveLength(2)
    }
    const checked = await cloudapp(['conform', 'sd.sock', '--only', 'describe'], {}, folder)
    expect(checked).toMatchObject({ code: 0, stderr: '' })
    const none = await cloudapp(['gateway', '--endpoint', 'http://x', '--port', '0'])
    expect(none).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining('There is no transport http') })
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

describe('cloudapp findings watch', () => {
  it('gives what is stored and each change as a document, and ends well when it is interrupted', async () => {
    const { child, lines } = goesOn(['findings', 'watch', '--endpoint', endpoint, '--min-severity', 'medium', '--json'])
    const next = async () => JSON.parse((await lines.next()).value)
    expect(await next()).toMatchObject({ type: 'finding', change: 'create', finding: { severity: 'High' } })
    expect(await next()).toEqual({ type: 'live' })
    await sd.findings.raise({ id: 'later', about, title: 'Later', severity: 'critical' })
    const later = await next()
    expect(later).toMatchObject({ type: 'finding', finding: { message: 'Later' } })
    await sd.findings.close('later')
    expect(await next()).toMatchObject({ change: 'close' })
    child.kill('SIGINT')
    const [code] = await once(child, 'exit')
    expect(code).toBe(0)
    const resumed = goesOn(['findings', 'watch', '--endpoint', endpoint, '--since', later.cursor, '--json'])
    expect(JSON.parse((await resumed.lines.next()).value)).toMatchObject({ change: 'close' })
  })

  it('gives a line for each change where there is no terminal, in which a hostile title can do nothing', async () => {
    const { lines } = goesOn(['findings', 'watch', '--endpoint', endpoint, '--vm', 'web-1'])
    const { value } = await lines.next()
    expect(value).toMatch(/^\d{4}-.* {2}create .*High {2}web-1 {2}Hidden process \\x1b\[8mminer {2}x1 {2}\w{8}-/)
  })

  it('draws a table on a terminal, and goes on when the service domain was restarted', async () => {
    // script(1) gives it a terminal of its own.
    const command = `${process.execPath} ${main} findings watch --endpoint ${endpoint}`
    const child = spawn('script', ['-qec', command, '/dev/null'], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, TERM: 'xterm' },
    })
    running.push(child)
    let shown = ''
    child.stdout.setEncoding('utf8').on('data', (text) => {
      shown += text
    })
    await vi.waitFor(() => expect(shown).toMatch(/SEVERITY +TITLE[\s\S]*Test IDS: live/), { timeout: 60_000 })
    await sd.close()
    sd = await start()
    await sd.findings.raise({ id: 'after', about, title: 'Restarted', severity: 'critical' })
    await vi.waitFor(() => expect(shown).toContain('Restarted'), { timeout: 60_000 })
    expect(shown).not.toContain('\u001b[8m')
  })
})

describe('cloudapp findings show', () => {
  it('shows one with its evidence, saves what lies beside it, and marks it as seen', async () => {
    const data = Buffer.from('evidence')
    const artifacts = [{ name: '../x', data }]
    const { uid } = await sd.findings.raise({ id: 'beside', about, title: 'Beside', severity: 'low', artifacts })
    const show = (...more: string[]) => cloudapp(['findings', 'show', '--endpoint', endpoint, uid, ...more])
    const digest = `sha256:${createHash('sha256').update(data).digest('hex')}`
    expect((await show()).stdout).toContain(
      `artifact ../x (application/octet-stream, 8 bytes)\n    --artifact ${digest}`,
    )
    const file = path.join(folder, 'evidence.bin')
    expect((await show('--artifact', digest, '--out', file)).code).toBe(0)
    expect(readFileSync(file, 'utf8')).toBe('evidence')
    expect((await show('--artifact', digest, '--out', file)).stderr).toContain('not overwritten')
    const seen = JSON.parse((await show('--acknowledge', '--comment', 'mine', '--json')).stdout)
    assertOcsf('detection_finding', seen)
    expect(seen).toMatchObject({ status: 'In Progress', comment: 'mine' })
    const find = (text: string) => cloudapp(['findings', 'show', '--endpoint', endpoint, text, '--json'])
    const listed = (await cloudapp(['findings', 'list', '--endpoint', endpoint])).stdout
    const short = /Beside.* (\S+)$/m.exec(listed)?.[1] ?? ''
    expect(short.length).toBeLessThan(uid.length)
    expect(JSON.parse((await find(short)).stdout)).toMatchObject({ finding_info: { uid } })
    // All of these were found in one hour: the time at the beginning of their uids is the same.
    const several = await find(uid.slice(0, 4))
    expect(several).toMatchObject({ code: 1, stderr: expect.stringContaining(`Several findings have the uid`) })
    expect(several.stdout).toContain('ERR_CLOUDAPP_INVALID_ARGUMENT')
    expect(await find('a')).toMatchObject({ code: 2, stdout: '' })
    const none = await find('no-such')
    expect(none).toMatchObject({ code: 1, stdout: expect.stringContaining('ERR_CLOUDAPP_NOT_FOUND') })
  })
})

describe('cloudapp gateway and cloudapp pass', () => {
  it('serve HTTP to who bears the local secret, or a pass of a customer', async () => {
    const [owner, service, secret] = ['owner.key', 'sd.pub', 'secret'].map((name) => path.join(folder, name)) as [
      string,
      string,
      string,
    ]
    await cloudapp(['keys', 'generate', owner])
    writeFileSync(service, sd.key.publicKey)
    const pass = (await cloudapp(['pass', '--key', owner, '--service', service, '--expires', '10m'])).stdout.trim()
    const gateway = goesOn(['gateway', '--endpoint', endpoint, '--port', '0', '--secret-file', secret])
    const url = /http:\/\/127\.0\.0\.1:\d+/.exec((await gateway.lines.next()).value)?.[0] ?? ''
    expect(statSync(secret).mode & 0o777).toBe(0o600)
    const count = async (bearer: string) => {
      const response = await fetch(`${url}/v1/findings`, { headers: { authorization: `Bearer ${bearer}` } })
      return response.ok ? ((await response.json()) as { findings: [] }).findings.length : response.status
    }
    expect(await count(readFileSync(secret, 'utf8').trim())).toBeGreaterThan(1)
    // This key owns no VM here.
    expect(await count(pass)).toBe(0)
    expect(await count(`${pass}x`)).toBe(401)
    const open = await cloudapp(['gateway', '--endpoint', endpoint, '--host', '0.0.0.0'])
    expect(open).toMatchObject({ code: 1, stderr: expect.stringContaining('is not loopback') })
  })
})

describe('cloudapp conform', () => {
  it('passes on our service domain and says what it checked', async () => {
    const { code, stdout } = await cloudapp(['conform', endpoint, '--only', 'findings'])
    expect(lines(stdout).at(-1)).toMatch(/^\d+ passed, 0 failed, \d+ skipped$/)
    expect(code).toBe(0)
    const { checks } = JSON.parse((await cloudapp(['conform', endpoint, '--only', 'describe', '--json'])).stdout)
    expect(checks).toMatchObject([{ name: 'describe', outcome: 'passed' }])
    const none = await cloudapp(['conform', endpoint, '--only', 'findigns'])
    expect(none).toMatchObject({ code: 2, stdout: '', stderr: expect.stringMatching(/open, describe, .*findings/) })
  })

  it('and the gateway reach it over TLS with a key', async () => {
    const file = path.join(folder, 'own.key')
    await cloudapp(['keys', 'generate', file])
    const tls = `${await sd.listen('tls:127.0.0.1:0')}#${sd.key.publicKey}`
    expect(await cloudapp(['conform', tls, '--key', file, '--only', 'describe'])).toMatchObject({ code: 0 })
    const keyless = await cloudapp(['gateway', '--endpoint', tls, '--port', '0'])
    expect(keyless).toMatchObject({ code: 1, stderr: expect.stringContaining('a key of this side') })
    const gateway = goesOn(['gateway', '--endpoint', tls, '--key', file, '--port', '0'])
    expect((await gateway.lines.next()).value).toMatch(/^gateway listens on /)
  })
})
