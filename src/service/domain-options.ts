import type { KeyPair } from '../capabilities/keys.js'
import type { Manifest } from '../capabilities/manifest.js'
import type { Duration } from '../duration.js'
import { checkOptions } from '../options.js'
import type { AccessHook } from './access.js'
import type { DelegationSource } from './delegations.js'

export interface ServiceDomainOptions {
  /** `cloudapp.json`, or its content; signed by its publisher (docs/manifest.md). */
  readonly manifest: string | Manifest
  /** The service domain's own key, or the file it is in: tokens are made out to it. */
  readonly key: string | KeyPair
  /** Socket of the broker ($CLOUDAPP_BROKER, or /run/cloudapp/broker.sock), or how to reach one in this process. */
  readonly broker?: string | (() => Promise<DelegationSource>)
  /** Socket to serve the standard interface on (/run/cloudapp/sd/NAME.sock), or false: on none but {@link ServiceDomain.serve}. */
  readonly listen?: string | false
  /** Permissions of that socket. 0o666 by default: `access` decides what a peer may see. */
  readonly listenMode?: number
  /** SQLite file of the findings (/var/lib/cloudapp/NAME/findings.db); its folder is made. Artifacts lie beside it. */
  readonly store?: string
  /**
   * Who may see findings about which VM, by who the transport says they are. By default root and the user this runs as see
   * all, others nothing. A customer who shows a pass signed by the key that owns VMs sees these as well, whatever this says.
   */
  readonly access?: AccessHook
  /** Tokens held from the start, as text or files. */
  readonly tokens?: readonly string[]
  /** A folder, made if it is not there: `*.token` files put there are taken on, those taken away let go of. */
  readonly inbox?: string
  readonly retention?: RetentionOptions
}

/** How long findings are kept. */
export interface RetentionOptions {
  /** 90 days by default. */
  readonly maxAge?: Duration
  /** 1,000,000 by default. */
  readonly maxCount?: number
  /** Bytes of all artifacts together: 1 GiB by default. Past it, the oldest of the VM that has most go. */
  readonly maxArtifactBytes?: number
}

const OPTION_KEYS = [
  ...['manifest', 'key', 'broker', 'listen', 'listenMode', 'store', 'access', 'tokens', 'inbox', 'retention'],
]

/** Throws ERR_CLOUDAPP_UNKNOWN_OPTION. */
export function checkDomainOptions(options: ServiceDomainOptions): void {
  checkOptions('ServiceDomain.start', options, OPTION_KEYS)
  checkOptions('ServiceDomain.start retention', options.retention, ['maxAge', 'maxCount', 'maxArtifactBytes'])
}

/** The connection to the broker that the options name. */
export async function connectTo(broker: ServiceDomainOptions['broker'], key: KeyPair): Promise<DelegationSource> {
  if (typeof broker === 'function') return broker()
  const path = broker ?? process.env.CLOUDAPP_BROKER ?? '/run/cloudapp/broker.sock'
  const { connectBroker } = await import('../broker/client.js')
  return connectBroker({ path, key })
}
