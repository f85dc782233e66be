import type { Pass } from '../../capabilities/pass.js'
import { CloudAppError } from '../../errors.js'
import { type Channel, peerName } from '../../transport/channel.js'
import { type AccessHook, scopeFor } from '../access.js'
import type { Findings } from '../findings.js'
import type { HealthState } from '../health.js'
import type { Run } from '../runs.js'
import type { VmScope } from '../scope.js'
import type { FindingStore } from '../store/store.js'
import type { Watcher } from '../watcher.js'
import { type Description, INTERFACE_LIMITS } from './protocol.js'

/** What the interface is served from. */
export interface Backend {
  readonly store: FindingStore
  readonly findings: Findings
  readonly health: HealthState
  readonly access: AccessHook
  describe(): Description
  /** VMs watched at present. */
  vms(): readonly { readonly uuid: string; readonly name: string }[]
  /** Asks for a scan of the VMs in scope (of one of them, if named). Undefined if no loop would answer. */
  run(scope: VmScope, vm: string | undefined): Run | undefined
}

/** Everything one client holds of us; ended with its session. */
export class ClientState {
  readonly #watches = new Set<Watcher>()
  readonly #runs = new Set<Run>()

  constructor(
    readonly backend: Backend,
    readonly channel: Channel,
  ) {}

  addWatch(watcher: Watcher): void {
    this.#watches.add(watcher)
  }

  addRun(run: Run): void {
    this.#runs.add(run)
  }

  dropWatch(watcher: Watcher): void {
    watcher.close()
    this.#watches.delete(watcher)
  }

  dropRun(run: Run): void {
    run.cancel()
    this.#runs.delete(run)
  }

  assertRoom(what: 'watches' | 'runs'): void {
    const limit = INTERFACE_LIMITS[what]
    const held = what === 'watches' ? this.#watches.size : this.#runs.size
    if (held < limit) return
    throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `A session has at most ${limit} ${what} at once`, {
      details: { limit },
    })
  }

  end(): void {
    for (const watcher of this.#watches) watcher.close()
    for (const run of this.#runs) run.cancel()
    this.#watches.clear()
    this.#runs.clear()
  }
}

/**
 * Who asks: the peer as the transport knows it, or the customer whose pass it showed. A pass takes the place of what the
 * peer might see itself, so that one who carries passes for others, such as a gateway, sees for each only theirs.
 */
export class Asker {
  readonly backend: Backend

  constructor(
    readonly state: ClientState,
    readonly pass: Pass | undefined,
  ) {
    this.backend = state.backend
  }

  /** What may be seen now. A hook that fails shows nothing. */
  scope(): VmScope {
    const { pass, backend } = this
    if (pass) return pass.bound || pass.expires > Date.now() ? backend.store.ownedBy(pass.customer) : NOTHING
    const { peer } = this.state.channel
    try {
      const scope = scopeFor(backend.access, peer)
      // Over TLS a customer has proved the key a pass would be signed with.
      return scope === 'all' || peer.kind !== 'tls' ? scope : new Set([...scope, ...backend.store.ownedBy(peer.key)])
    } catch (error) {
      backend.health.fail('access', error, 'unknown')
      return NOTHING
    }
  }

  /** For who acknowledged a finding. */
  get name(): string {
    return this.pass ? `customer ${this.pass.customer}` : peerName(this.state.channel.peer)
  }
}

const NOTHING: VmScope = new Set()
