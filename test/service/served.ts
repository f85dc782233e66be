import { KeyPair } from '../../src/capabilities/keys.js'
import type { AccessHook } from '../../src/service/access.js'
import { type ConnectOptions, SdClient } from '../../src/service/client.js'
import { Findings, type RetentionLimits } from '../../src/service/findings.js'
import { HealthState } from '../../src/service/health.js'
import type { Backend } from '../../src/service/interface/asker.js'
import { InterfaceServer } from '../../src/service/interface/server.js'
import { Scans } from '../../src/service/scans.js'
import type { FindingStore } from '../../src/service/store/store.js'
import { memoryChannelPair } from '../../src/transport/index.js'
import { DB, KEEP, later, openStore, WEB } from './support.js'

/** Peers over a memory channel, by the name of their half. */
const TENANTS: Record<string, 'all' | string[]> = { web: [WEB.uuid], db: [DB.uuid], nobody: [], admin: 'all' }

/** The standard interface over a store of its own, in this process. */
export class Served {
  readonly key = KeyPair.generate()
  readonly health = new HealthState('ids')
  readonly scans = new Scans(this.health)
  readonly errors: unknown[] = []
  readonly findings: Findings
  readonly server: InterfaceServer
  readonly backend: Backend
  access: AccessHook = (peer) => (peer.kind === 'memory' ? (TENANTS[peer.name] ?? []) : 'all')

  constructor(
    readonly store: FindingStore = openStore(),
    retention: RetentionLimits = KEEP,
  ) {
    this.findings = new Findings(store, retention, (error) => this.errors.push(error))
    this.findings.subscribe((changes) => this.scans.note(changes))
    this.backend = {
      store,
      findings: this.findings,
      health: this.health,
      access: (peer) => this.access(peer),
      describe: () => ({
        service: { name: 'ids', title: 'IDS', version: '1.0.0', vendor: 'Acme', key: this.key.publicKey },
        interface: { version: 1, ocsf: '1.8.0' },
        rights: [{ right: 'memory.read', reason: 'to look' }],
        publishes: ['findings'],
      }),
      vms: () => [WEB, DB],
      run: (scope, vm) => this.scans.run(scope, vm),
    }
    this.server = new InterfaceServer(this.backend)
    later(async () => {
      await this.server.close()
      await this.findings.shutdown()
    })
  }

  /** A channel to it, as the tenant of that name. */
  channel(name: string) {
    const [ours, theirs] = memoryChannelPair([name, 'sd'])
    this.server.serve(theirs)
    return ours
  }

  async connect(name: string, options: ConnectOptions = {}): Promise<SdClient> {
    const client = await SdClient.connect(async () => this.channel(name), options)
    later(() => client.close())
    return client
  }

  raise(key: string, about = WEB, severity: 'low' | 'high' = 'high') {
    return this.findings.raise({ key, about, title: key, severity })
  }
}

export async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const item of items) all.push(item)
  return all
}
