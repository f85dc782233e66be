// Raises findings until it is killed, and says each one it was told is durable: `key count`.
import { Findings } from '../../src/service/findings.js'
import { FindingStore } from '../../src/service/store/store.js'

const [path = '', round = ''] = process.argv.slice(2)
const about = { name: 'web-1', uuid: '11111111-1111-4111-8111-111111111111', bootNonce: 'a'.repeat(32) }
const store = FindingStore.open({ path, product: { name: 'ids', vendor_name: 'acme' } })
const keep = { maxAgeMs: 86_400_000, maxCount: 1_000_000, maxTombstones: 1000, maxArtifactBytes: 1e9 }
const findings = new Findings(store, keep, (error) => {
  throw error
})

for (let i = 0; ; i++) {
  const keys = [`round-${round}-${i}`, `round-${round}-${i >> 1}`, 'always']
  const made = await Promise.all(keys.map((key) => findings.raise({ key, about, title: key, severity: 'low' })))
  process.stdout.write(made.map((f, j) => `${keys[j]} ${f.count}\n`).join(''))
}
