import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { connectBroker } from '../../src/broker/client.js'
import { loadKey } from '../../src/capabilities/key-files.js'
import { newBootNonce, writeOwners } from '../../src/capabilities/owners.js'
import type { TokenText } from '../../src/capabilities/token.js'
import { CloudAppError } from '../../src/errors.js'
import { syntheticGuest } from '../../src/testing/index.js'
import { PHYSICAL } from '../../src/vmi/memory.js'
import { cloudapp } from './cloudapp.js'

const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-broker-'))
const file = (name: string) => path.join(folder, name)
const main = path.resolve(import.meta.dirname, '../../dist/cli/main.js')
let broker: ChildProcess
let ready: { socket: string; sockets: string[]; broker: string }
let output = ''

async function generate(name: string): Promise<string> {
  return JSON.parse((await cloudapp(['keys', 'generate', file(name), '--json'])).stdout).publicKey
}

beforeAll(async () => {
  const [owner] = await Promise.all([generate('owner.key'), generate('broker.key'), generate('sd.key')])
  await syntheticGuest().write(file('ram'))
  await writeOwners(file('owners.json'), [
    {
      name: 'web-1',
      uuid: randomUUID(),
      bootNonce: newBootNonce(),
      owner: owner as `ed25519:${string}`,
      source: `raw:${file('ram')}`,
    },
  ])
  const config = {
    key: 'broker.key',
    register: 'owners.json',
    state: 'state',
    socket: ['broker.sock', 'tls:127.0.0.1:0'],
  }
  writeFileSync(file('broker.json'), JSON.stringify(config))
  broker = spawn(process.execPath, [main, 'broker', '--config', file('broker.json'), '--json'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  ready = await new Promise((resolve, reject) => {
    broker.once('close', (code) => reject(new Error(`the broker ended with ${code}`)))
    broker.stdout?.setEncoding('utf8').on('data', (text: string) => {
      output += text
      if (output.endsWith('}\n')) resolve(JSON.parse(output))
    })
  })
})

afterAll(() => {
  broker?.kill('SIGKILL')
  rmSync(folder, { recursive: true })
})

const owner = () => ['--broker', ready.socket, '--key', file('owner.key')]

describe('broker, delegate, revoke', () => {
  it('gives a right, which works, and takes it back, after which it does not', async () => {
    const terms = ['--vm', 'web-1', '--to', file('sd.key.pub'), '--rights', 'memory.read,vm.info', '--expires', '10m']
    const delegated = await cloudapp(['delegate', ...owner(), '--broker-key', ready.broker, ...terms, '--json'])
    expect(delegated).toMatchObject({ code: 0, stderr: '' })
    const { token, blockId, words } = JSON.parse(delegated.stdout)
    expect(words.join(' ')).toMatch(/read/)

    await using connection = await connectBroker({ path: ready.socket, key: await loadKey(file('sd.key')) })
    const vm = await connection.redeem<'memory.read'>(token)
    const [read] = await vm.memory.read([{ space: PHYSICAL, at: 0x1000n, length: 16 }])
    expect(Buffer.from(read?.bytes ?? [])).toEqual(readFileSync(file('ram')).subarray(0x1000, 0x1010))

    const revoked = await cloudapp(['revoke', blockId, ...owner(), '--json'])
    expect(JSON.parse(revoked.stdout)).toEqual({ blockId, ended: 1, direct: 0, seen: true, destroyed: [] })
    await expect(vm.memory.read([{ space: PHYSICAL, at: 0n, length: 8 }])).rejects.toSatisfy((error) =>
      CloudAppError.is(error, 'ERR_CLOUDAPP_REVOKED'),
    )
    expect(await cloudapp(['revoke', token, ...owner()])).toMatchObject({
      code: 0,
      stdout: `revoked ${blockId}; 0 live capabilities ended\n`,
      stderr: '',
    })
  })

  it('takes back a token in a file, and not what that was derived from', async () => {
    const terms = ['--vm', 'web-1', '--to', file('sd.key.pub'), '--rights', 'memory.read,vm.info', '--expires', '10m']
    await cloudapp(['delegate', ...owner(), ...terms, '--out', file('whole.token')])
    const narrow = ['token', 'attenuate', file('whole.token'), '--key', file('sd.key'), '--rights', 'vm.info', '--json']
    const { blockId } = JSON.parse((await cloudapp([...narrow, '--out', file('narrow.token')])).stdout)
    await using connection = await connectBroker({ path: ready.socket, key: await loadKey(file('sd.key')) })
    const text = (name: string) => readFileSync(file(name), 'utf8').trim() as TokenText
    const [whole, derived] = [
      await connection.redeem(text('whole.token')),
      await connection.redeem(text('narrow.token')),
    ]
    const revoked = await cloudapp(['revoke', file('narrow.token'), ...owner()])
    expect(revoked).toMatchObject({ code: 0, stdout: `revoked ${blockId}; 1 live capability ended\n`, stderr: '' })
    expect([whole.closed.aborted, derived.closed.aborted]).toEqual([false, true])
  })

  it('records the revocation of a block it has never seen, and says so', async () => {
    const block = 'ab'.repeat(16)
    const typo = await cloudapp(['revoke', block, ...owner()])
    expect(typo).toMatchObject({ code: 0, stderr: expect.stringContaining('has seen no such block') })
    expect(JSON.parse((await cloudapp(['revoke', 'cd'.repeat(16), ...owner(), '--json'])).stdout).seen).toBe(false)
    expect((await cloudapp(['revoke', block, ...owner()])).stderr).toBe('')
    const nothing = await cloudapp(['revoke', 'abc', ...owner()])
    expect(nothing).toMatchObject({ code: 2, stderr: expect.stringContaining("cloudapp revoke: 'abc' is no block id") })
  })

  it('is to be started where nobody listens', async () => {
    const absent = ['--broker', file('no.sock'), '--key', file('owner.key')]
    expect((await cloudapp(['revoke', 'ab'.repeat(16), ...absent])).stderr).toMatch(
      /what to do: .*cloudapp broker --config/,
    )
  })

  it('is reached over TLS too, by its key', async () => {
    const [, tls] = ready.sockets
    expect(tls).toMatch(/^tls:127\.0\.0\.1:\d+$/)
    const args = ['audit', 'head', '--broker', tls as string, '--key', file('owner.key'), '--json']
    const head = await cloudapp([...args, '--broker-key', file('broker.key.pub')])
    expect(JSON.parse(head.stdout)).toMatchObject({ broker: ready.broker })
    const other = await cloudapp([...args, '--broker-key', file('sd.key.pub')])
    expect(other.code).toBe(1)
    expect(JSON.parse(other.stdout)).toMatchObject({ error: { code: 'ERR_CLOUDAPP_DENIED' } })
  })

  it('writes the token to a new file only', async () => {
    const terms = [
      '--vm',
      'web-1',
      '--to',
      file('sd.key.pub'),
      '--rights',
      'vm.info',
      '--expires',
      '1m',
      '--out',
      file('token'),
    ]
    expect((await cloudapp(['delegate', ...owner(), ...terms])).code).toBe(0)
    expect(readFileSync(file('token'), 'utf8')).toMatch(/^cloudapp1\./)
    expect((await cloudapp(['delegate', ...owner(), ...terms])).stderr).toMatch(/is not overwritten/)
  })

  it.each([
    [['--vm', 'web-2', '--rights', 'vm.info', '--expires', '1m'], /web-1.*code: ERR_CLOUDAPP_NOT_FOUND/s],
    [['--vm', 'web-1', '--rights', 'memory.raed', '--expires', '1m'], /did you mean 'memory.read'/],
    [
      ['--vm', 'web-1', '--rights', 'vm.info', '--expires', 'tomorrow'],
      /expires must be milliseconds or a number with a unit/,
    ],
  ])('refuses %j', async (terms, message) => {
    const { code, stderr } = await cloudapp(['delegate', ...owner(), '--to', file('sd.key.pub'), ...terms])
    expect(code).toBe(1)
    expect(stderr).toMatch(message)
  })

  it('refuses a key that owns nothing, and another broker', async () => {
    const terms = ['--vm', 'web-1', '--to', file('sd.key.pub'), '--rights', 'vm.info', '--expires', '1m']
    const stranger = await cloudapp(['delegate', '--broker', ready.socket, '--key', file('sd.key'), ...terms])
    expect(stranger).toMatchObject({ code: 1, stderr: expect.stringContaining('ERR_CLOUDAPP_DENIED') })
    const other = await cloudapp(['delegate', ...owner(), '--broker-key', file('sd.key.pub'), ...terms])
    expect(other.code).toBe(1)
  })

  it('ends on SIGTERM, having printed one document, with a log that verifies', async () => {
    const end = new Promise((resolve) => broker.once('close', resolve))
    broker.kill('SIGTERM')
    expect(await end).toBe(0)
    expect(JSON.parse(output)).toMatchObject({ socket: ready.socket, broker: ready.broker })
    expect(existsSync(ready.socket)).toBe(false)
    const log = file('state/audit.log')
    const verified = await cloudapp(['audit', 'verify', log, '--broker-key', ready.broker, '--json'])
    expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true, state: 'closed' })
  })
})

describe('a broker that can not start', () => {
  it.each([
    ['{', 'is no JSON'],
    ['{"key": "broker.key"}', 'register must be a path'],
    ['{"keey": "broker.key"}', "did you mean 'key'?"],
    ['{"key": "broker.key", "register": "none.json", "state": "s", "socket": "x"}', 'none.json'],
    ['{"key": "broker.key", "register": "owners.json", "state": "s", "socket": "x", "mode": 432}', '"0660"'],
  ])('says why: %s', async (text, message) => {
    writeFileSync(file('bad.json'), text)
    const { code, stderr } = await cloudapp(['broker', '--config', file('bad.json')])
    expect(code).toBe(1)
    expect(stderr).toContain(message)
  })
})
