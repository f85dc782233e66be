import { appendFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { readAudit, verifyAudit } from '../../../src/broker/audit/index.js'
import { Child } from '../child.js'
import { KeyPair } from './imports.js'
import { folder } from './rig.js'

test('a writer killed again and again loses nothing it acknowledged', { timeout: 300_000 }, async () => {
  const path = join(await folder(), 'audit.log')
  const brokerKey = KeyPair.fromSeed(new Uint8Array(32).fill(1)).publicKey
  const acknowledged = new Map<number, string>()
  for (let round = 0; round < 20; round++) {
    const child = await Child.start('audit/writer.ts', [path, '1'])
    // Killed wherever it is after some acknowledgements, a different number each round.
    for (let i = 0; i <= round; i++) {
      const { seq, hash } = (await child.next()) ?? {}
      acknowledged.set(Number(seq), String(hash))
    }
    await child.kill()
    // What a power failure can leave besides: the beginning of a line.
    if (round % 5 === 4) await appendFile(path, '0123abcd')
    const report = await verifyAudit(path, { brokerKey })
    expect(report.faults).toEqual([])
    expect(report.seq).toBeGreaterThanOrEqual(Math.max(...acknowledged.keys()))
  }
  for await (const { seq, hash } of readAudit(path)) {
    if (acknowledged.get(seq) === hash) acknowledged.delete(seq)
  }
  expect(acknowledged.size).toBe(0)
})
