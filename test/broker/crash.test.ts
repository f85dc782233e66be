import { appendFileSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { verifyAudit } from '../../src/broker/audit/index.js'
import { connectBroker, connectOwner } from '../../src/broker/client.js'
import { createKeyFile, loadKey } from '../../src/capabilities/key-files.js'
import { KeyPair } from '../../src/capabilities/keys.js'
import { newBootNonce, writeOwners } from '../../src/capabilities/owners.js'
import type { TokenText } from '../../src/capabilities/token.js'
import { CloudAppError } from '../../src/errors.js'
import { Child } from './child.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const ROUNDS = 8

describe('a broker that is killed', () => {
  let folder: string
  let brokerKey: KeyPair
  const owner = KeyPair.generate()
  const holder = KeyPair.generate()
  const path = (name: string) => join(folder, name)
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'cloudapp-crash-'))
    await createKeyFile(path('key'))
    brokerKey = await loadKey(path('key'))
    const vm = { name: 'web-1', uuid: '11111111-2222-3333-4444-555555555555', bootNonce: newBootNonce(), source: 'x:y' }
    await writeOwners(path('owners'), [{ ...vm, owner: owner.publicKey }])
  })
  const children: Child[] = []
  afterAll(async () => {
    for (const child of children) await child.kill()
    rmSync(folder, { recursive: true, force: true })
  })

  async function start(): Promise<Child> {
    const child = await Child.start('broker-child.ts', [path('key'), path('owners'), path('state'), path('sock')])
    children.push(child)
    expect(await child.next()).toMatchObject({ ready: true })
    return child
  }

  it(`forgets no revocation and no use, in ${ROUNDS} kills under load`, async () => {
    const revoked: TokenText[] = []
    const uses = 60
    let used = 0
    let limited: TokenText | undefined
    for (let round = 0; round < ROUNDS; round++) {
      const broker = await start()
      const own = await connectOwner({ path: path('sock'), key: owner })
      const give = (more: object = {}) =>
        own.delegate({ vm: 'web-1', to: holder.publicKey, rights: ['memory.read'], expires: '10m', ...more })
      limited ??= (await give({ uses })).token
      const connection = await connectBroker({ path: path('sock'), key: holder })
      // Whatever was revoked in a round before is revoked now.
      for (const token of revoked) {
        await expect(connection.redeem(token)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
      }
      const counted = await connection.redeem<'memory.read'>(limited)
      const grants = await Promise.all(Array.from({ length: 5 }, () => give()))
      const free = await connection.redeem<'memory.read'>((await give()).token)
      const reading = [counted, free].map(async (vm) => {
        for (;;) {
          try {
            await vm.memory.read([{ space: 0n, at: 0n, length: 8 }])
            if (vm === counted) used++
          } catch (error) {
            if (!CloudAppError.is(error)) throw error
            return error.code
          }
        }
      })
      const revoking = grants.map(async ({ revoke, token }) => {
        try {
          await revoke()
          revoked.push(token)
        } catch (error) {
          // Killed before it could say so: that one may be either.
          if (!CloudAppError.is(error)) throw error
        }
      })
      await Promise.race(revoking)
      await broker.kill('SIGKILL')
      await Promise.all([...reading, ...revoking])
      await Promise.all([own.close(), connection.close()])
      expect(used).toBeLessThanOrEqual(uses)
    }
    expect(revoked.length).toBeGreaterThanOrEqual(ROUNDS)
    expect(used).toBeGreaterThan(0)
    const last = await start()
    const connection = await connectBroker({ path: path('sock'), key: holder })
    const counted = await connection.redeem<'memory.read'>(limited as TokenText)
    for (;;) {
      const done = await counted.memory.read([{ space: 0n, at: 0n, length: 8 }]).catch((error: CloudAppError) => error)
      if (done instanceof Error) {
        expect(done).toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT', details: { limit: 'uses' } })
        break
      }
      used++
    }
    expect(used).toBeLessThanOrEqual(uses)
    await connection.close()
    await last.kill('SIGTERM')
    const report = await verifyAudit(path('state/audit.log'), { brokerKey: brokerKey.publicKey })
    expect(report).toMatchObject({ ok: true })
  }, 120_000)

  it('takes a torn last line of its journal for what it is, and a damaged one for what that is', async () => {
    const journal = path('state/state.journal')
    const good = readFileSync(journal)
    appendFileSync(journal, '0123456789abcdef {"kind":"revo')
    const broker = await start()
    await broker.kill('SIGTERM')
    const text = readFileSync(journal, 'utf8')
    expect(text.endsWith('\n')).toBe(true)
    const bytes = Buffer.from(good)
    bytes[30] = (bytes[30] as number) ^ 1
    writeFileSync(journal, bytes)
    const { openBroker } = await import('../../src/broker/broker.js')
    await expect(openBroker({ key: brokerKey, register: path('owners'), state: path('state') })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_STORE',
      message: expect.stringMatching(/line 1/),
    })
  })
})
