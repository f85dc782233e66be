import { readFileSync, writeFileSync } from 'node:fs'
import { loadPublicKey, newBootNonce, writeOwners } from '@cloudapp/sdk'
import { Output, Parties, UIDS } from '../examples/demo/parties.js'
import type { Measurement } from './measure.js'

/** Resident memory of the example detector, attached through a broker, after a scan. It maps no guest memory. */
export async function benchSd(ram: string, progress: (message: string) => void): Promise<Measurement[]> {
  progress('attaching a service domain through a broker')
  await using parties = await Parties.install()
  const uuid = crypto.randomUUID()
  await parties.json('customer', ['keys', 'generate', 'owner.key'])
  const owner = await loadPublicKey(parties.file('customer', 'owner.key.pub'))
  const entry = { name: 'bench', uuid, bootNonce: newBootNonce(), owner, source: `raw:${ram}` }
  await writeOwners(parties.file('root', 'register.json'), [entry])
  await parties.json('root', ['keys', 'generate', 'broker.key'])
  const socket = parties.socket('broker')
  const config = { key: 'broker.key', register: 'register.json', state: 'state', socket, mode: '0666' }
  writeFileSync(parties.file('root', 'broker.json'), JSON.stringify(config))
  await new Output(parties.start('root', 'cloudapp', ['broker', '--config', 'broker.json']), 'the broker').line()

  const { publicKey } = await parties.json<{ publicKey: string }>('sd', ['keys', 'generate', 'sd.key'])
  const sd = parties.start('sd', 'ids', [
    ...['--manifest', `${parties.folder}/app/cloudapp.json`, '--key', 'sd.key', '--broker', socket],
    ...['--listen', parties.socket('ids'), '--store', 'findings.db', '--inbox', 'inbox'],
    ...['--client', `${UIDS.client}=${uuid}`],
  ])
  const output = new Output(sd, 'the detector')
  const { token } = await parties.json<{ token: string }>('customer', [
    ...['delegate', '--broker', socket, '--key', 'owner.key', '--vm', 'bench'],
    ...['--to', publicKey, '--rights', 'vm.info,memory.read', '--expires', '10m'],
  ])
  parties.handOver('sd', 'inbox/bench.token', token)
  await output.line('attached')
  const scanned = await parties.run('client', 'client', ['--endpoint', parties.socket('ids'), '--scan', '3'])
  if (scanned.code !== 0) throw new Error(scanned.stderr)
  const kib = (name: string) => {
    const found = new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(readFileSync(`/proc/${sd.pid}/status`, 'utf8'))
    if (found === null) throw new Error(`/proc/PID/status has no ${name}`)
    return Number(found[1])
  }
  const rss = (kib('VmRSS') - kib('RssShmem')) / 1024
  return [
    { name: 'sd.rss', value: rss, unit: 'MiB', note: 'the example detector, attached through a broker, after 3 scans' },
  ]
}
