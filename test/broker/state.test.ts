import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { openBroker } from '../../src/broker/broker.js'
import { BrokerState, type CountedBlock } from '../../src/broker/state.js'
import { KeyPair } from '../../src/capabilities/keys.js'
import { OwnerRegister, writeOwners } from '../../src/capabilities/owners.js'

const folders: string[] = []
const folder = () => {
  const path = mkdtempSync(join(tmpdir(), 'cloudapp-state-'))
  folders.push(path)
  return path
}
afterAll(() => {
  for (const path of folders) rmSync(path, { recursive: true, force: true })
})

const block = (name: string, until = 1000): CountedBlock => ({ key: `k ${name}`, root: 'r', until })

describe("a broker's state", () => {
  it('counts only so many blocks of one root, and those of others still', async () => {
    const state = await BrokerState.open(folder(), () => 0)
    const all = Array.from({ length: 4096 }, (_, i) => block(`${i}`))
    await Promise.all(all.map((one) => state.use(one, { uses: 1, outputBytes: 0 })))
    expect(state.hasRoom(block('4095'))).toBe(true)
    expect(state.hasRoom(block('new'))).toBe(false)
    expect(state.hasRoom({ ...block('new'), root: 'another' })).toBe(true)
    await state.close()
  })

  it('forgets a count when its block has expired, and not before', async () => {
    let now = 0
    const path = folder()
    let state = await BrokerState.open(path, () => now)
    for (let i = 0; i < 4096; i++) void state.use(block(`${i}`, i === 7 ? 500 : 1000), { uses: 1, outputBytes: 0 })
    await state.flushed()
    expect(state.hasRoom(block('new'))).toBe(false)
    now = 499
    expect(state.hasRoom(block('new'))).toBe(false)
    now = 500
    expect(state.hasRoom(block('new'))).toBe(true)
    expect(state.usage(block('7').key).uses).toBe(0)
    expect(state.usage(block('8').key).uses).toBe(1)
    await state.close()
    state = await BrokerState.open(path, () => now)
    expect(state.usage(block('8').key).uses).toBe(1)
    await state.close()
  })

  it('writes its journal anew while it runs: a count that goes up all day does not fill the disk', async () => {
    const path = folder()
    let state = await BrokerState.open(path, () => 0)
    const issuer = KeyPair.generate().publicKey
    await state.revoke(issuer, 'ab'.repeat(16), 5)
    let longest = 0
    for (let uses = 1; uses <= 200_000; uses++) {
      void state.use(block('one'), { uses, outputBytes: 0 })
      if (uses % 2000 === 0) {
        await state.flushed()
        longest = Math.max(longest, statSync(join(path, 'state.journal')).size)
      }
    }
    await state.flushed()
    // Without it, 200,000 lines of more than 100 bytes.
    expect(longest).toBeLessThan(12_000_000)
    await state.close()
    state = await BrokerState.open(path, () => 0)
    expect(state.usage(block('one').key).uses).toBe(200_000)
    expect(state.revokedAt(issuer, 'ab'.repeat(16))).toBe(5)
    await state.close()
    expect(readFileSync(join(path, 'state.journal'), 'utf8').split('\n').length).toBeLessThan(100)
  }, 60_000)

  it('is kept in no folder that others can write to', async () => {
    const path = folder()
    const register = join(path, 'owners.json')
    await writeOwners(register, [])
    const state = join(path, 'state')
    const options = { key: KeyPair.generate(), register: await OwnerRegister.open(register), state }
    await (await openBroker(options)).close()
    chmodSync(state, 0o770)
    await expect(openBroker(options)).rejects.toThrow(/may be written by others/)
  })
})
