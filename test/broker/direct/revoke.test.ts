import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { readAudit } from '../../../src/broker/audit/index.js'
import { type Broker, openBroker } from '../../../src/broker/broker.js'
import { connectBroker, connectOwner, type Granted, type OwnerConnection } from '../../../src/broker/client.js'
import { DirectClient, type Supervisor, superviseDirect } from '../../../src/broker/direct/index.js'
import { readRevocations } from '../../../src/broker/state.js'
import { KeyPair } from '../../../src/capabilities/keys.js'
import { newBootNonce, OwnerRegister, writeOwners } from '../../../src/capabilities/owners.js'
import { CloudAppError } from '../../../src/errors.js'
import { syntheticGuest } from '../../../src/testing/index.js'
import { unnamed } from '../fake-vm.js'
import { Toolstack, uuid } from './toolstack.js'

const alice = KeyPair.generate()
const holder = KeyPair.generate()
let folder = ''
let tools: Toolstack
let supervisor: Supervisor
let broker: Broker
let owner: OwnerConnection
let granted: Granted

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'cloudapp-direct-'))
  tools = new Toolstack()
  supervisor = await superviseDirect({ state: join(folder, 'direct'), host: tools, flask: tools })
  const vm = { name: 'web', uuid: uuid(2), bootNonce: newBootNonce(), owner: alice.publicKey, source: 'synthetic' }
  await writeOwners(join(folder, 'owners.json'), [vm])
  broker = await openBroker({
    key: KeyPair.generate(),
    register: await OwnerRegister.open(join(folder, 'owners.json')),
    state: join(folder, 'state'),
    open: async () => unnamed(syntheticGuest().vm()),
    supervisor: supervisor.socket,
  })
  owner = await connectOwner({ channel: broker.connect(), key: alice })
  granted = await owner.delegate({ vm: 'web', to: holder.publicKey, rights: ['memory.read'], expires: '10m' })
  await new DirectClient(supervisor.socket).start({
    id: 'f'.repeat(32),
    service: { domid: 1, uuid: uuid(1), name: 'ids' },
    client: { domid: 2, uuid: uuid(2), name: 'web' },
    rights: ['memory.read'],
    booleans: ['ca_a'],
    issuer: alice.publicKey,
    blocks: [granted.blockId],
    expires: granted.expires,
    end: 'revoke',
  })
})
afterEach(async () => {
  await owner.close()
  await broker.close()
  await supervisor.close()
  rmSync(folder, { recursive: true })
})

async function actions(): Promise<string[]> {
  const all: string[] = []
  for await (const { entry } of readAudit(join(folder, 'state', 'audit.log'))) {
    all.push(`${entry.action} ${entry.outcome}${entry.vm === undefined ? '' : ` ${entry.vm}`}`)
  }
  return all.filter((action) => /^(direct|host)\./.test(action))
}

it('ends direct access when the owner revokes at the broker', async () => {
  expect(tools.on.get('ca_a')).toBe(true)
  expect(await owner.revoke(granted.blockId)).toEqual({ ended: 0, direct: 1, seen: true, destroyed: [] })
  expect(tools.on.get('ca_a')).toBe(false)
  expect(tools.domains).toHaveLength(3)
  expect(await actions()).toEqual(['direct.end allowed'])
  const revoked = await readRevocations(join(folder, 'state'))
  expect(revoked(alice.publicKey, granted.blockId)).toBe(true)
  expect(revoked(KeyPair.generate().publicKey, granted.blockId)).toBe(false)
})

it('tells what ended at the broker from what was direct', async () => {
  const connection = await connectBroker({ channel: broker.connect(), key: holder })
  await connection.redeem(granted.token)
  expect(await owner.revoke(granted.blockId)).toMatchObject({ ended: 1, direct: 1 })
  await connection.close()
})

it('destroys the service domain when it is revoked hard, and records it', async () => {
  expect(await owner.revoke(granted.blockId, { hard: true })).toMatchObject({ ended: 0, direct: 1, destroyed: ['ids'] })
  expect(tools.domains.map(({ domid }) => domid)).toEqual([2, 3])
  expect(await actions()).toEqual(['host.destroy allowed ids', 'direct.end allowed'])
})

it('revokes at the broker also when the supervisor is gone, and says that direct access did not end', async () => {
  await supervisor.close()
  const error = await owner.revoke(granted.blockId).catch((reason: unknown) => reason)
  expect(CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')).toBe(true)
  expect((await readRevocations(join(folder, 'state')))(alice.publicKey, granted.blockId)).toBe(true)
  expect(await actions()).toEqual(['direct.end failed'])
})

it('knows no revocations where no broker was', async () => {
  const error = await readRevocations(folder).catch((reason: unknown) => reason)
  expect(CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')).toBe(true)
})
