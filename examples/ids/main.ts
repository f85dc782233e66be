/**
 * An intrusion detector as a service domain: for each VM it is delegated, it looks every thirty seconds, and whenever a
 * client asks, for hidden processes and modules and for code that diverts the kernel.
 *
 * It gets no profile, no symbol file and no configuration of the VM, and can do what its token says.
 */
import { once } from 'node:events'
import { parseArgs } from 'node:util'
import { type Delegation, integrity, Linux, ServiceDomain } from '@cloudapp/sdk'

const { values } = parseArgs({
  options: {
    manifest: { type: 'string', default: 'cloudapp.json' },
    key: { type: 'string', default: 'sd.key' },
    broker: { type: 'string', default: '/run/cloudapp/broker.sock' },
    listen: { type: 'string', default: '/run/cloudapp/sd/ids.sock' },
    store: { type: 'string', default: 'findings.db' },
    /** Tokens are put here by whoever delegates. */
    inbox: { type: 'string', default: 'inbox' },
    /** A client: UID=VM-UUID, or UID=all. */
    client: { type: 'string', multiple: true, default: [] },
  },
})

const clients = new Map(
  values.client.map((text) => {
    const [uid = '', vms = ''] = text.split('=')
    return [Number(uid), vms === 'all' ? ('all' as const) : vms.split(',')]
  }),
)

const say = (text: string) => process.stdout.write(`${text}\n`)

await using sd = await ServiceDomain.start({
  manifest: values.manifest,
  key: values.key,
  broker: values.broker,
  listen: values.listen,
  store: values.store,
  inbox: values.inbox,
  // A domain of this host sees what is about itself: dom0 vouches for its uuid.
  access: (peer) =>
    peer.kind === 'unix' ? (clients.get(peer.uid) ?? []) : peer.kind === 'vchan' && peer.uuid ? [peer.uuid] : [],
})

sd.events.on('failure', ({ source, code, message }) => say(`${source}: ${code}: ${message}`))
sd.events.on('ended', ({ name }, { code }) => say(`${name} ended: ${code}`))
sd.onDelegation(['memory.read'], async (vm: Delegation<'memory.read'>) => {
  const { name } = vm.identity
  const begun = performance.now()
  const linux = await Linux.attach(vm)
  say(
    `attached to ${name}: Linux ${linux.release}, in ${Math.round(performance.now() - begun)} ms, with no configuration`,
  )
  const vcpus = vm.has('vcpu.read') ? { vcpus: vm.vcpus } : {}
  let open = new Set<string>()
  for await (const _ of sd.every('30s', { until: vm.closed })) {
    const { hits } = await integrity(linux, vcpus)
    for (const hit of hits) await sd.findings.raise({ key: hit.id, about: vm, ...hit })
    const found = new Set(hits.map((hit) => hit.id))
    for (const key of open) if (!found.has(key)) await sd.findings.close(key, { about: vm })
    open = found
  }
})

say(`${sd.manifest.title} ${sd.manifest.version} serves ${values.listen}`)
process.once('SIGTERM', () => void sd.close())
process.once('SIGINT', () => void sd.close())
await once(sd.closed, 'abort')
