import { AsyncLocalStorage } from 'node:async_hooks'
import { mkdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Delegation } from '../capabilities/delegation.js'
import { loadKey } from '../capabilities/key-files.js'
import { KeyPair } from '../capabilities/keys.js'
import { type Manifest, parseManifest, readManifest } from '../capabilities/manifest.js'
import type { Right } from '../capabilities/rights.js'
import { type Duration, parseDuration } from '../duration.js'
import { CloudAppError } from '../errors.js'
import { Emitter, type Events } from '../events.js'
import { checkOptions } from '../options.js'
import type { Channel, ChannelListener } from '../transport/channel.js'
import { listenEndpoint } from '../transport/endpoint.js'
import type { VmIdentity } from '../vmi/guest.js'
import { type AccessHook, ownUserOnly } from './access.js'
import { assertRights, type DelegationSource, type HeldDelegation, TokenKeeper } from './delegations.js'
import type { FindingInput } from './draft.js'
import { Loop, type Tick } from './every.js'
import { Findings, type RaisedFinding } from './findings.js'
import { HealthState } from './health.js'
import { Inbox, readToken } from './inbox.js'
import type { Description, Health } from './interface/protocol.js'
import { INTERFACE_VERSION } from './interface/protocol.js'
import { InterfaceServer } from './interface/server.js'
import { OCSF_VERSION } from './ocsf/facts.js'
import { Run } from './runs.js'
import { FindingStore, inScope, type VmScope } from './store.js'

export interface ServiceDomainOptions {
  /** `cloudapp.json`, or its content. */
  readonly manifest: string | Manifest
  /** The service domain's own key, or the file it is in: tokens are made out to it. */
  readonly key: string | KeyPair
  /** Socket of the broker ($CLOUDAPP_BROKER, or /run/cloudapp/broker.sock), or how to reach one in this process. */
  readonly broker?: string | (() => Promise<DelegationSource>)
  /** Socket to serve the standard interface on (/run/cloudapp/sd/NAME.sock), or false: on none but {@link ServiceDomain.serve}. */
  readonly listen?: string | false
  /** Permissions of that socket. 0o666 by default: `access` decides what a peer may see. */
  readonly listenMode?: number
  /** SQLite file of the findings (/var/lib/cloudapp/NAME/findings.db); its folder is made. */
  readonly store?: string
  /** Who may see findings about which VM. By default root and the user this runs as see all, others nothing. */
  readonly access?: AccessHook
  /** Tokens held from the start, as text or files. */
  readonly tokens?: readonly string[]
  /** A folder, made if it is not there: `*.token` files put there are taken on, those taken away let go of. */
  readonly inbox?: string
  /** How long findings are kept: 90 days and 1,000,000 by default. */
  readonly retention?: { readonly maxAge?: Duration; readonly maxCount?: number }
}

const OPTION_KEYS = [
  'manifest',
  'key',
  'broker',
  'listen',
  'listenMode',
  'store',
  'access',
  'tokens',
  'inbox',
  'retention',
]

/** A handler that failed is tried again after so many ms, doubled up to the longest. */
const FIRST_WAIT = 1000
const LONGEST_WAIT = 60_000
/** A handler that worked so long starts over with the first wait. */
const SETTLED = 60_000

interface Handler {
  readonly rights: readonly Right[]
  readonly run: (vm: Delegation<Right>) => unknown
}

interface Context {
  readonly held: HeldDelegation
  readonly source: string
  readonly loops: Set<Loop>
}

/** What happens to a service domain. */
export type DomainEvents = {
  /** A token was redeemed. */
  delegation: (vm: Delegation<Right>) => void
  /** A delegation has ended: closed, revoked, expired, or its VM has gone. */
  ended: (vm: VmIdentity, reason: CloudAppError) => void
}

/** Findings as an author writes them: {@link Findings.raise}, with the block that allowed the look filled in. */
export interface DomainFindings {
  raise(input: FindingInput): Promise<RaisedFinding>
  close: Findings['close']
  list: Findings['list']
}

/**
 * A service domain: holds tokens, hands each delegation to the handlers that ask for its rights, keeps findings, and serves
 * the standard interface to client VMs. What goes wrong in a handler becomes health state, never a crash.
 */
export class ServiceDomain implements AsyncDisposable {
  readonly manifest: Manifest
  /** Key that tokens must be made out to. */
  readonly key: KeyPair
  readonly findings: DomainFindings
  /** For logs and tests; the work belongs into {@link ServiceDomain.onDelegation}. */
  readonly events: Events<DomainEvents>
  readonly #emitter: Emitter<DomainEvents>
  readonly #findings: Findings
  readonly #health: HealthState
  readonly #keeper: TokenKeeper
  readonly #server: InterfaceServer
  readonly #handlers: Handler[] = []
  readonly #loops = new Map<Loop, { readonly uuid: string; readonly name: string } | undefined>()
  readonly #context = new AsyncLocalStorage<Context>()
  readonly #working = new Set<Promise<void>>()
  readonly #closed = new AbortController()
  /** Changes of findings by uuid of their VM: what a turn found is told to its VM's clients only. */
  readonly #changes = new Map<string, number>()
  #listeners: ChannelListener[] = []
  #inbox: Inbox | undefined
  #closing: Promise<void> | undefined

  private constructor(manifest: Manifest, key: KeyPair, store: FindingStore, options: ServiceDomainOptions) {
    this.manifest = manifest
    this.key = key
    this.#health = new HealthState(manifest.name)
    this.#emitter = new Emitter((error) => this.#health.fail('listener', error, 'service'))
    this.events = this.#emitter
    const { maxAge = '90d', maxCount = 1_000_000 } = options.retention ?? {}
    const retention = { maxAgeMs: parseDuration(maxAge, 'retention.maxAge'), maxCount, maxTombstones: 1_000_000 }
    this.#findings = new Findings(store, retention, (error) => this.#health.fail('store', error, 'service'))
    this.#findings.subscribe((changes) => {
      for (const { vm } of changes) this.#changes.set(vm, (this.#changes.get(vm) ?? 0) + 1)
      this.#health.ok('store')
    })
    this.findings = {
      raise: (input) => this.#findings.raise(this.#allowedBy(input)),
      close: (key, closeOptions) => this.#findings.close(key, closeOptions),
      list: (listOptions) => this.#findings.list(listOptions),
    }
    this.#keeper = new TokenKeeper({
      health: this.#health,
      connect: () => connectTo(options.broker, key),
      onDelegation: (held) => {
        const { delegation } = held
        delegation.closed.addEventListener('abort', () => this.#tell(delegation), { once: true })
        this.#emitter.emit('delegation', delegation)
        for (const handler of this.#handlers) this.#start(handler, held)
      },
    })
    this.#server = new InterfaceServer({
      store,
      findings: this.#findings,
      health: this.#health,
      access: options.access ?? ownUserOnly,
      describe: () => this.describe(),
      vms: () => this.#vms(),
      run: (scope, vm) => this.#run(scope, vm),
    })
  }

  /**
   * Starts a service domain: opens its store, listens, takes its tokens on. It goes on without a broker and takes
   * delegations when one is there.
   *
   * Throws ERR_CLOUDAPP_INVALID_ARGUMENT or ERR_CLOUDAPP_NOT_FOUND for a wrong or missing manifest, key or token,
   * ERR_CLOUDAPP_STORE, and what listening on a socket throws. Close it, or use `await using`.
   */
  static async start(options: ServiceDomainOptions): Promise<ServiceDomain> {
    checkOptions('ServiceDomain.start', options, OPTION_KEYS)
    checkOptions('ServiceDomain.start retention', options.retention, ['maxAge', 'maxCount'])
    const { manifest: given } = options
    const manifest = typeof given === 'string' ? await readManifest(given) : parseManifest(given)
    const key = options.key instanceof KeyPair ? options.key : await loadKey(options.key)
    const tokens = await Promise.all(
      (options.tokens ?? []).map(async (from) => ({ from, text: await readToken(from) })),
    )
    const path = options.store ?? join('/var/lib/cloudapp', manifest.name, 'findings.db')
    await mkdir(dirname(path), { recursive: true, mode: 0o700 })
    const product = {
      name: manifest.title,
      vendor_name: manifest.vendor,
      uid: manifest.name,
      version: manifest.version,
    }
    const domain = new ServiceDomain(manifest, key, FindingStore.open({ path, product }), options)
    try {
      if (options.listen !== false) {
        const socket = options.listen ?? join('/run/cloudapp/sd', `${manifest.name}.sock`)
        await domain.listen(socket, options.listenMode)
      }
      for (const [index, { from, text }] of tokens.entries()) {
        domain.#keeper.add(text, from === text ? `${index}` : from)
      }
      if (options.inbox !== undefined) {
        domain.#inbox = await Inbox.open({
          folder: options.inbox,
          health: domain.#health,
          add: (token, from) => domain.#keeper.add(token, from),
          remove: (token) => void domain.#keeper.remove(token),
        })
      }
    } catch (error) {
      await domain.close()
      throw error
    }
    return domain
  }

  /** Fires when the service domain closes. */
  get closed(): AbortSignal {
    return this.#closed.signal
  }

  /** Delegations held at present. */
  get delegations(): readonly Delegation<Right>[] {
    return [...this.#keeper.held].map(({ delegation }) => delegation)
  }

  /**
   * Calls `handler` for each delegation that has all of `rights`, those already held too; `vm` has exactly their parts. A
   * handler that throws makes the service domain degraded and is called again after a pause, as long as the delegation
   * lives; one that returns is done with it.
   */
  onDelegation<const R extends readonly Right[]>(rights: R, handler: (vm: Delegation<R[number]>) => unknown): void {
    assertRights(rights)
    const entry: Handler = { rights, run: handler as unknown as Handler['run'] }
    this.#handlers.push(entry)
    for (const held of this.#keeper.held) this.#start(entry, held)
  }

  /**
   * Turns of a scan: the first at once, then one each `interval`, and one whenever a client asks with `run`. Ends when
   * `until` fires, when the delegation whose handler it is called in ends, and when the service domain closes.
   */
  every(interval: Duration, options: { readonly until?: AbortSignal } = {}): AsyncIterableIterator<Tick> {
    checkOptions('every', options, ['until'])
    const intervalMs = parseDuration(interval, 'interval')
    if (intervalMs < 1) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'every: an interval is at least 1ms')
    const context = this.#context.getStore()
    const delegation = context?.held.delegation ?? this.delegations.find((d) => d.closed === options.until)
    const until = [this.closed, delegation?.closed, options.until].filter((signal) => signal !== undefined)
    const loop = new Loop({
      intervalMs,
      label: delegation?.identity.name ?? this.manifest.name,
      until,
      changes: () => this.#changesOf(delegation?.identity.uuid),
      onTurn: () => context && this.#health.ok(context.source),
      onEnd: (ended) => {
        this.#loops.delete(ended)
      },
    })
    this.#loops.set(loop, delegation?.identity)
    context?.loops.add(loop)
    return loop
  }

  /**
   * Serves the standard interface on an endpoint (a path, `unix:/path`, `tls:HOST:PORT`) beside others; where it listens then.
   * Throws what listening throws.
   */
  async listen(endpoint: string, mode?: number): Promise<string> {
    this.#assertOpen()
    const listener = await listenEndpoint(endpoint, {
      key: this.key,
      ...(endpoint.startsWith('tls:') ? {} : { mode: mode ?? 0o666 }),
      maxChannels: 1024,
      onChannel: (channel) => this.serve(channel),
    })
    this.#listeners.push(listener)
    return listener.address
  }

  /** Serves the standard interface to the peer of a channel, which then belongs to the service domain. */
  serve(channel: Channel): void {
    this.#server.serve(channel)
  }

  /** What clients are told of it. */
  describe(): Description {
    const { name, title, version, vendor, rights, publishes } = this.manifest
    return {
      service: { name, title, version, vendor, key: this.key.publicKey },
      interface: { version: INTERFACE_VERSION, ocsf: OCSF_VERSION },
      rights: rights.map(({ right, reason, optional }) => ({ right, reason, ...(optional && { optional }) })),
      publishes: [...publishes],
    }
  }

  /** How it is, with everything that is wrong. */
  health(): Health {
    return this.#health.report('all', this.#vms())
  }

  /** Ends loops, delegations, sessions and the store, in that order; findings that wait are written. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(): Promise<void> {
    this.#health.closing()
    this.#closed.abort(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The service domain is closed'))
    await Promise.all(this.#listeners.map((listener) => listener.close()))
    await this.#inbox?.close()
    await this.#keeper.close()
    await Promise.race([Promise.all(this.#working), sleep(5000, undefined, { ref: false })])
    await this.#server.close()
    await this.#findings.shutdown()
  }

  #start(handler: Handler, held: HeldDelegation): void {
    if (!handler.rights.every((right) => held.delegation.has(right))) return
    const work = this.#supervise(handler, held).finally(() => this.#working.delete(work))
    this.#working.add(work)
  }

  async #supervise(handler: Handler, held: HeldDelegation): Promise<void> {
    const { delegation } = held
    const source = `handler ${this.#handlers.indexOf(handler)} ${delegation.identity.uuid}`
    let wait = FIRST_WAIT
    while (!delegation.closed.aborted && !this.closed.aborted) {
      const begun = performance.now()
      const loops = new Set<Loop>()
      try {
        await this.#context.run({ held, source, loops }, async () => handler.run(delegation))
        this.#health.ok(source)
        return
      } catch (error) {
        for (const loop of loops) loop.fail(error)
        // The delegation ended under it: nothing is wrong with the handler.
        if (delegation.closed.aborted || this.closed.aborted) break
        this.#health.fail(source, error, delegation.identity)
        if (performance.now() - begun > SETTLED) wait = FIRST_WAIT
        await pause(wait, delegation.closed, this.closed)
        wait = Math.min(wait * 2, LONGEST_WAIT)
      }
    }
    this.#health.ok(source)
  }

  #tell({ closed, identity }: Delegation<Right>): void {
    this.#emitter.emit('ended', identity, closed.reason)
  }

  // The block that allowed the look, for a finding about a VM that a token names.
  #allowedBy(input: FindingInput): FindingInput {
    const about = input?.about
    const identity = about && 'identity' in about ? about.identity : about
    const all = [...this.#keeper.held]
    // The very delegation, else one on the same boot of the same VM: what was attenuated from it, or its identity alone.
    const held =
      all.find(({ delegation }) => delegation === about) ??
      all.find(({ delegation: { identity: own } }) => {
        return own.uuid === identity?.uuid && own.bootNonce === identity.bootNonce
      })
    if (!held) return input
    const right = held.delegation.rights.find((r) => r !== 'vm.info')
    return { ...(right && { right }), ...(held.block !== '' && { block: held.block }), ...input }
  }

  #vms(): { uuid: string; name: string }[] {
    const vms = new Map<string, { uuid: string; name: string }>()
    for (const { identity } of this.delegations) vms.set(identity.uuid, { uuid: identity.uuid, name: identity.name })
    return [...vms.values()]
  }

  #changesOf(uuid: string | undefined): number {
    if (uuid !== undefined) return this.#changes.get(uuid.toLowerCase()) ?? 0
    let sum = 0
    for (const count of this.#changes.values()) sum += count
    return sum
  }

  #run(scope: VmScope, vm: string | undefined): Run | undefined {
    const targets = [...this.#loops].filter(([, about]) => {
      // A loop about no VM in particular may look at everybody's.
      if (!about) return scope === 'all' && vm === undefined
      return inScope(scope, about.uuid) && (vm === undefined || vm === about.name || vm.toLowerCase() === about.uuid)
    })
    return targets.length > 0 ? new Run(targets.map(([loop]) => loop)) : undefined
  }

  #assertOpen(): void {
    if (this.closed.aborted) throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The service domain is closed')
  }
}

async function connectTo(broker: ServiceDomainOptions['broker'], key: KeyPair): Promise<DelegationSource> {
  if (typeof broker === 'function') return broker()
  const path = broker ?? process.env.CLOUDAPP_BROKER ?? '/run/cloudapp/broker.sock'
  const { connectBroker } = await import('../broker/client.js')
  return connectBroker({ path, key })
}

async function pause(ms: number, ...signals: AbortSignal[]): Promise<void> {
  await sleep(ms, undefined, { signal: AbortSignal.any(signals), ref: false }).catch(() => undefined)
}
