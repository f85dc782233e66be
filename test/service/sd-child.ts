// A service domain in a process of its own, which raises findings until it is killed.
import { join } from 'node:path'
import { KeyPair } from '../../src/capabilities/keys.js'
import { signManifest } from '../../src/capabilities/manifest-sign.js'
import { ServiceDomain } from '../../src/service/domain.js'

const [folder = '', round = ''] = process.argv.slice(2)
const about = { name: 'web-1', uuid: '11111111-1111-4111-8111-111111111111', bootNonce: 'a'.repeat(32) }
const key = KeyPair.generate()
const sd = await ServiceDomain.start({
  manifest: signManifest(
    { cloudapp: 1, name: 'ids', title: 'IDS', version: '1.0.0', vendor: 'Acme', rights: [], publishes: [] },
    key,
  ),
  key,
  listen: join(folder, 'sd.sock'),
  store: join(folder, 'findings.db'),
})
process.stdout.write('ready\n')
for (let i = 0; ; i += 2) {
  const keys = [`round-${round}-${i}`, `round-${round}-${i + 1}`]
  await Promise.all(keys.map((key) => sd.findings.raise({ key, about, title: key, severity: 'high' })))
  process.stdout.write(`${keys.join('\n')}\n`)
  // A pace that a watcher can follow: what is tested is the restart, not the gap.
  await new Promise((resolve) => setTimeout(resolve, 2))
}
