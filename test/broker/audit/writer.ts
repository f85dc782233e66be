/** A process that writes an audit log until it is killed, and says on stdout what was acknowledged. */
import { AuditLog } from '../../../src/broker/audit/index.js'
import { KeyPair } from '../../../src/capabilities/index.js'

const [path = '', seed = '1'] = process.argv.slice(2)
const log = await AuditLog.open({
  path,
  key: KeyPair.fromSeed(new Uint8Array(32).fill(Number(seed))),
  ...{ segmentBytes: 20_000, headEvery: 16, reserveBytes: 16 * 1024 },
})
for (;;) {
  const batch = Array.from({ length: 7 }, () => log.append({ action: 'test.note', outcome: 'allowed' }))
  const { seq, hash } = (await Promise.all(batch)).at(-1) ?? { seq: 0, hash: '' }
  process.stdout.write(`${JSON.stringify({ seq, hash })}\n`)
}
