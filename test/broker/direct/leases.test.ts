import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { DirectClient, type DirectLease, type Supervisor, superviseDirect } from '../../../src/broker/direct/index.js'
import { KeyPair } from '../../../src/capabilities/keys.js'
import { CloudAppError } from '../../../src/errors.js'
import { Toolstack, uuid } from './toolstack.js'

const owner = KeyPair.generate().publicKey
const block = 'a'.repeat(32)

let folder = ''
let tools: Toolstack
let supervisor: Supervisor
let client: DirectClient
let trouble = 0

const open = async (): Promise<void> => {
  supervisor = await superviseDirect({ state: folder, host: tools, flask: tools, onTrouble: () => trouble++ })
  client = new DirectClient(supervisor.socket)
}
const lease = (more: Partial<DirectLease> = {}): DirectLease => ({
  id: Math.random().toString(16).slice(2).padEnd(32, '0'),
  service: { domid: 1, uuid: uuid(1), name: 'ids' },
  client: { domid: 2, uuid: uuid(2), name: 'web' },
  rights: ['memory.read'],
  booleans: ['ca_a'],
  issuer: owner,
  blocks: [block],
  expires: Date.now() + 60_000,
  end: 'revoke',
  ...more,
})
const code = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => 'done',
    (error: unknown) => (CloudAppError.is(error) ? error.code : error),
  )
const until = (what: () => boolean): Promise<unknown> =>
  vi.waitFor(() => expect(what()).toBe(true), { timeout: 20_000 })

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'cloudapp-direct-'))
  tools = new Toolstack()
  trouble = 0
  await open()
})
afterEach(async () => {
  await supervisor.close()
  rmSync(folder, { recursive: true })
})

describe('leases of direct access', () => {
  it('turns on, and off at its time', async () => {
    await client.start(lease({ expires: Date.now() + 900 }))
    expect(tools.on.get('ca_a')).toBe(true)
    await until(() => tools.on.get('ca_a') === false)
    expect(tools.domains).toHaveLength(3)
    expect(await client.list()).toEqual([])
  })

  it('destroys the service domain at its time if the lease says so', async () => {
    await client.start(lease({ expires: Date.now() + 500, end: 'destroy' }))
    await until(() => tools.domains.length === 2)
    expect(tools.on.get('ca_a')).toBe(false)
  })

  it('ends on revocation, for the issuer alone; hard destroys', async () => {
    await client.start(lease())
    expect(await client.end(KeyPair.generate().publicKey, block, true)).toEqual({ ended: 0, destroyed: [] })
    expect(tools.on.get('ca_a')).toBe(true)
    expect(await client.end(owner, block, false)).toEqual({ ended: 1, destroyed: [] })
    expect(tools.on.get('ca_a')).toBe(false)
    await client.start(lease())
    expect(await client.end(owner, block, true)).toEqual({ ended: 1, destroyed: ['ids'] })
    expect(tools.domains.map(({ domid }) => domid)).toEqual([2, 3])
  })

  it('leaves a switch on that another token needs, and the latch never', async () => {
    await client.start(lease())
    await client.start(lease({ blocks: ['b'.repeat(32)], booleans: ['ca_a', 'ca_b'] }))
    await client.end(owner, block, false)
    expect([tools.on.get('ca_a'), tools.on.get('ca_b')]).toEqual([true, true])
    await client.end(owner, 'b'.repeat(32), false)
    expect([tools.on.get('ca_a'), tools.on.get('ca_b')]).toEqual([false, false])
    await client.start(lease({ booleans: ['ca_live'] }))
    await client.start(lease({ booleans: ['ca_live'], blocks: ['c'.repeat(32)] }))
    await client.end(owner, block, false)
    expect(tools.on.get('ca_live')).toBe(false)
    expect(await client.list()).toEqual([])
  })

  it('goes on after a restart, ends what is over, and revives nothing', async () => {
    const expires = Date.now() + 700
    await client.start(lease({ expires }))
    await client.start(lease({ booleans: ['ca_b'] }))
    await supervisor.close()
    tools.on.set('ca_b', false)
    await until(() => Date.now() > expires)
    await open()
    expect([...tools.on]).toEqual([
      ['ca_a', false],
      ['ca_b', false],
      ['ca_live', true],
    ])
    expect(await client.list()).toHaveLength(1)
  })

  it('destroys who holds a right that can not be taken back', async () => {
    await client.start(lease({ expires: Date.now() + 300 }))
    tools.broken = true
    await until(() => tools.domains.length === 2)
    expect(trouble).toBe(2)
    expect(tools.on.get('ca_a')).toBe(true)
  })

  it('takes a switch that has gone from the policy for off', async () => {
    await client.start(lease())
    tools.on.delete('ca_a')
    expect(await client.end(owner, block, false)).toEqual({ ended: 1, destroyed: [] })
  })

  it('refuses a lease over another boot, a past one, one twice, and nonsense', async () => {
    expect(await code(client.start(lease({ client: { domid: 9, uuid: uuid(2), name: 'web' } })))).toBe(
      'ERR_CLOUDAPP_NOT_FOUND',
    )
    expect(await code(client.start(lease({ expires: Date.now() - 1 })))).toBe('ERR_CLOUDAPP_EXPIRED')
    const one = lease()
    await client.start(one)
    expect(await code(client.start(one))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
    expect(await code(client.start(lease({ booleans: ['a; reboot'] })))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
    expect(await code(client.start(lease({ booleans: ['ca_none'] })))).toBe('ERR_CLOUDAPP_SOURCE')
    expect(await client.list()).toHaveLength(1)
  })

  it('does not start over a damaged file', async () => {
    await supervisor.close()
    writeFileSync(join(folder, 'direct.json'), '{"version":1,"leases":[{}]}', { mode: 0o600 })
    expect(await code(superviseDirect({ state: folder, host: tools, flask: tools }))).toBe('ERR_CLOUDAPP_STORE')
    rmSync(join(folder, 'direct.json'))
    await open()
  })
})
