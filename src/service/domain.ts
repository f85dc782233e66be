import { mkdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Delegation } from '../capabilities/delegation.js'
import { loadKey } from '../capabilities/key-files.js'
import { KeyPair, type PublicKey } from '../capabilities/keys.js'
import { type Manifest, parseManifest, readManifest } from '../capabilities/manifest.js'
import { verifyManifest } from '../capabilities/manifest-sign.js'
import type { Right } from '../capabilities/rights.js'
import { type Duration, parseDuration } from '../duration.js'
import { CloudAppError } from '../errors.js'
import { Emitter, type Events } from '../events.js'
import { checkOptions } from '../options.js'
import type { Channel, ChannelListener } from '../transport/channel.js'
import { listenEndpoint } from '../transport/endpoint.js'
import type { VmIdentity } from '../vmi/guest.js'
import { ownUserOnly } from './access.js'
import { assertRights, TokenKeeper } from './delegations.js'
import { checkDomainOptions, connectTo, type ServiceDomainOptions } from './domain-options.js'
import type { FindingInput } from './draft.js'
import type { Tick } from './every.js'
import { Findings, type RaisedFinding } from './findings.js'
import { Handlers } from './handlers.js'
import { type Failure, HealthState } from './health.js'
import { Inbox, readToken } from './inbox.js'
import type { Description, Health } from './interface/protocol.js'
import { INTERFACE_VERSION } from './interface/protocol.js'
import { InterfaceServer } from './interface/server.js'
import { OCSF_VERSION } from './ocsf/facts.js'
import { Scans } from './scans.js'
import { FindingStore } from './store/store.js'

/** The source of what a listener of {@link ServiceDomain.events} threw. */
const EVENT_LISTENER = 'event listener'

/** What happens to a service domain. */
export type DomainEvents = {
  /** A token was redeemed. */
  delegation: (vm: Delegation<Right>) => void
  /** A delegation has ended: closed, revoked, expired, or its VM has gone. */
  ended: (vm: VmIdentity, reason: CloudAppError) => void
  /** Something new is wrong: a token is refused, the broker is away, a handler threw. {@link ServiceDomain.health} has all. */
  failure: (failure: Failure) => void
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
  readonly #handlers: Handlers
  readonly #scans: Scans
  readonly #closed = new AbortController()
  #listeners: ChannelListener[] = []
  #inbox: Inbox | undefined
  #closing: Promise<void> | undefined

  private constructor(manifest: Manifest, key: KeyPair, store: FindingStore, options: ServiceDomainOptions) {
    this.manifest = manifest
    this.key = key
    this.#health = new HealthState(manifest.name, (failure) => {
      // Whom a failing listener would be told to is perhaps that listener.
      if (failure.source !== EVENT_LISTENER) this.#emitter.emit('failure', failure)
    })
    this.#emitter = new Emitter((error) => this.#health.fail(EVENT_LISTENER, error, 'service'))
    this.events = this.#emitter
    this.#handlers = new Handlers(this.#health, this.closed)
    this.#scans = new Scans(this.#health)
    const { maxAge = '90d', maxCount = 1_000_000, maxArtifactBytes = 1024 ** 3 } = options.retention ?? {}
    const retention = {
      maxAgeMs: parseDuration(maxAge, 'retention.maxAge'),
      maxCount,
      maxTombstones: 1_000_000,
      maxArtifactBytes,
    }
    this.#findings = new Findings(store, retention, (error) => this.#health.fail('store', error, 'service'))
    this.#findings.subscribe((changes) => {
      this.#scans.note(changes)
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
        const { delegation, owner } = held
        if (owner !== undefined) this.#own(store, delegation.identity.uuid, owner)
        delegation.closed.addEventListener('abort', () => this.#tell(delegation), { once: true })
        this.#emitter.emit('delegation', delegation)
        this.#handlers.start(held)
      },
    })
    this.#server = new InterfaceServer({
      store,
      findings: this.#findings,
      health: this.#health,
      access: options.access ?? ownUserOnly,
      describe: () => this.describe(),
      vms: () => this.#vms(),
      run: (scope, vm) => this.#scans.run(scope, vm),
    })
  }

  /**
   * Starts a service domain: opens its store, listens, takes its tokens on. It goes on without a broker and takes
   * delegations when one is there.
   *
   * Throws ERR_CLOUDAPP_INVALID_ARGUMENT or ERR_CLOUDAPP_NOT_FOUND for a wrong or missing manifest, key or token,
   * ERR_CLOUDAPP_PROOF for a manifest that is not signed or was changed since, ERR_CLOUDAPP_STORE, and what listening on a socket throws. Close it, or use `await using`.
   */
  static async start(options: ServiceDomainOptions): Promise<ServiceDomain> {
    checkDomainOptions(options)
    const { manifest: given } = options
    const manifest = typeof given === 'string' ? await readManifest(given) : parseManifest(given)
    verifyManifest(manifest)
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
    this.#handlers.add({ rights, run: handler as (vm: Delegation<Right>) => unknown }, this.#keeper.held)
  }

  /**
   * Turns of a scan: the first at once, then one each `interval`, and one whenever a client asks with `run`. Ends when
   * `until` fires, when the delegation whose handler it is called in ends, and when the service domain closes.
   */
  every(interval: Duration, options: { readonly until?: AbortSignal } = {}): AsyncIterableIterator<Tick> {
    checkOptions('every', options, ['until'])
    const intervalMs = parseDuration(interval, 'interval')
    if (intervalMs < 1) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'every: an interval is at least 1ms')
    const { context } = this.#handlers
    const delegation = context?.held.delegation ?? this.delegations.find((d) => d.closed === options.until)
    const until = [this.closed, delegation?.closed, options.until].filter((signal) => signal !== undefined)
    return this.#scans.begin({ intervalMs, about: delegation?.identity, service: this.manifest.name, until, context })
  }

  /**
   * Serves the standard interface on an endpoint (a path, `unix:/path`, `tls:HOST:PORT`, `vchan:NAME`) beside others; where it listens then.
   * Throws what listening throws.
   */
  async listen(endpoint: string, mode?: number): Promise<string> {
    this.#assertOpen()
    const listener = await listenEndpoint(endpoint, {
      key: this.key,
      ...(/^(?:tls|vchan):/.test(endpoint) ? {} : { mode: mode ?? 0o666 }),
      maxChannels: 1024,
      onChannel: (channel) => this.serve(channel),
      onError: (error) => this.#health.fail('listener', error, 'service'),
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
    await this.#handlers.settled()
    await this.#server.close()
    await this.#findings.shutdown()
  }

  #own(store: FindingStore, uuid: string, owner: PublicKey): void {
    try {
      store.owners.set(uuid, owner)
    } catch (error) {
      this.#health.fail('store', error, 'service')
    }
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

  #assertOpen(): void {
    if (this.closed.aborted) throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The service domain is closed')
  }
}
