import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest'
import { readAudit } from '../../src/broker/audit/index.js'
import { openBroker } from '../../src/broker/broker.js'
import { KeyPair } from '../../src/capabilities/keys.js'
import { newBootNonce, writeOwners } from '../../src/capabilities/owners.js'

const folder = mkdtempSync(join(tmpdir(), 'cloudapp-recovered-'))
afterAll(() => rmSync(folder, { recursive: true }))
afterEach(() => vi.unstubAllEnvs())

/** What the broker's first record says, on a host whose only VM is of this source and whose event agent does this. */
async function started(source: string, agent: string): Promise<unknown> {
  const state = mkdtempSync(join(folder, 'state-'))
  writeFileSync(join(state, 'agent'), `#!/bin/sh\n${agent}\n`, { mode: 0o755 })
  vi.stubEnv('CLOUDAPP_EVENT_AGENT', join(state, 'agent'))
  const register = join(state, 'owners.json')
  const owner = KeyPair.generate().publicKey
  const uuid = '11111111-2222-3333-4444-555555555555'
  await writeOwners(register, [{ name: 'web-1', uuid, bootNonce: newBootNonce(), owner, source }])
  await using _ = await openBroker({ key: KeyPair.generate(), register, state })
  for await (const { entry } of readAudit(join(state, 'audit.log'))) {
    if (entry.action === 'broker.start') return entry.details
  }
  return undefined
}

describe('a broker that starts where one was killed with all its helpers', () => {
  it('undoes what it left in VMs, and writes it down', async () => {
    expect(await started('xen:web-1', 'echo 7 1 1 2')).toEqual({
      vms: 1,
      recovered: 'xen:7: undid 1 breakpoint, trapped events, 2 pauses that killed processes left',
    })
    expect(await started('qemu:/run/web-1.qmp', 'echo 7 1 0 0')).toMatchObject({
      recovered: expect.stringMatching(/^xen:7/),
    })
    expect(await started('xen:web-1', '')).toEqual({ vms: 1 })
  })

  it('starts also where that fails', async () => {
    expect(await started('xen:web-1', 'echo no >&2; exit 1')).toEqual({
      vms: 1,
      recoveryFailed: 'the event agent could not recover (status 1): no',
    })
  })

  it('asks nobody on a host without running VMs', async () => {
    expect(await started('raw:/nowhere', 'echo 7 1 1 2')).toEqual({ vms: 1 })
  })
})
