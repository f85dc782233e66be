import type { KeyPair } from '../capabilities/keys.js'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import type { Channel } from '../transport/channel.js'
import { checkEndpoint, connectEndpoint } from '../transport/endpoint.js'
import { readArtifact } from './client-artifacts.js'
import { ask, ClientLink, type Connect } from './client-link.js'
import {
  type ClientFinding,
  clientFinding,
  type FindingGap,
  filterOf,
  runEvents,
  watchFindings,
} from './client-streams.js'
import type { Endpoint } from './discover.js'
import { ANSWERS, answer, type Description, type Health, type RunEvent } from './interface/protocol.js'
import type { FindingStatus, Severity } from './vocabulary.js'

export interface ConnectOptions {
  /** Aborts connecting, with ERR_CLOUDAPP_ABORTED. */
  readonly signal?: AbortSignal
  /** Free text that the service domain may log. */
  readonly name?: string
  /** How long a watch goes on trying to reach a service domain that has gone, in ms. 60,000 by default; 0: not at all. */
  readonly reconnectMs?: number
  /**
   * A customer's key: its VMs' findings are seen, and those only. It stays here; a pass is signed for each connection. A
   * TLS endpoint needs a key, a customer's or any other.
   */
  readonly key?: KeyPair
  /** Instead of the key, a pass that was made with it (`makePass`, `cloudapp pass`). */
  readonly pass?: string
}

/** How long one call may take: `AbortSignal.timeout(ms)` is a deadline. Aborted, it throws ERR_CLOUDAPP_ABORTED. */
export interface ClientCall {
  readonly signal?: AbortSignal
}

/** Which findings. Without a key, all that this client may see. */
export interface FindingFilter {
  readonly minSeverity?: Severity
  readonly status?: FindingStatus | readonly FindingStatus[]
  /** Name or uuid of a VM. */
  readonly vm?: string
  /** Begin after this cursor: only what has changed since. */
  readonly since?: string
}

export interface ListOptions extends FindingFilter {
  /** Stop after so many; all by default. */
  readonly limit?: number
  readonly signal?: AbortSignal
  /** Told if findings after `since` were removed for their age or number. */
  readonly onGap?: (gap: FindingGap) => void
}

export interface WatchOptions extends FindingFilter {
  /** Ends the iteration without an error. */
  readonly signal?: AbortSignal
  /** Told how many records were lost, and why; the watch goes on after them. */
  readonly onGap?: (gap: FindingGap) => void
  /** Told once all that was stored has been given and from here on findings come as they are made. */
  readonly onLive?: () => void
}

/** A scan that was asked for: its events, and the way to give it up. */
export interface ClientRun extends AsyncIterable<RunEvent> {
  /** Waits for the end. Throws what the scan failed with. */
  done(): Promise<'finished' | 'cancelled'>
  cancel(): void
}

/** Findings as a client sees them. */
export interface ClientFindings {
  /** Every finding once, in the order of their last changes. */
  list(options?: ListOptions): AsyncIterableIterator<ClientFinding>
  /** Throws ERR_CLOUDAPP_NOT_FOUND. */
  get(uid: string, options?: ClientCall): Promise<ClientFinding>
  /** First all that is stored (after `since`), then each change as it is made; resumes when the service domain was away. */
  watch(options?: WatchOptions): AsyncIterableIterator<ClientFinding>
  /** Marks a finding as seen. Throws ERR_CLOUDAPP_NOT_FOUND. */
  acknowledge(uid: string, options?: ClientCall & { readonly comment?: string }): Promise<ClientFinding>
}

/** Evidence kept beside findings. */
export interface ClientArtifacts {
  /**
   * The bytes of an artifact that a finding names in `unmapped.cloudapp.artifacts`, in order and as they come. They are
   * checked against the digest, at the end: what was read before an error is not to be believed.
   *
   * Throws ERR_CLOUDAPP_NOT_FOUND if the finding names none such, or it is not kept any more; ERR_CLOUDAPP_PROTOCOL if
   * these are not its bytes.
   */
  read(finding: string, digest: string, options?: ClientCall): AsyncIterableIterator<Uint8Array>
}

/**
 * A client of one service domain. What the service domain answers is checked and bounded: it is trusted with no more than
 * its findings. Close it, or use `await using`.
 */
export class SdClient implements AsyncDisposable {
  readonly findings: ClientFindings
  readonly artifacts: ClientArtifacts
  readonly #link: ClientLink

  private constructor(link: ClientLink) {
    this.#link = link
    this.findings = {
      list: (options = {}) => this.#list(options),
      get: async (uid, options = {}) => {
        checkOptions('findings.get', options, ['signal'])
        const wire = await link.call((service) => service.findings.get(uid), options.signal)
        return clientFinding(answer('findings.get', ANSWERS.finding, wire))
      },
      watch: (options = {}) => watchFindings(link, options),
      acknowledge: async (uid, options = {}) => {
        checkOptions('findings.acknowledge', options, ['comment', 'signal'])
        const { signal, ...note } = options
        const wire = await link.call((service) => service.findings.acknowledge(uid, note), signal)
        return clientFinding(answer('findings.acknowledge', ANSWERS.finding, wire))
      },
    }
    this.artifacts = { read: (finding, digest, options = {}) => readArtifact(link, finding, digest, options) }
  }

  /**
   * Connects to a service domain: an {@link Endpoint} as `discover` gives it, a path or `unix:/path`,
   * `tls:HOST:PORT#ed25519:…` (with the service domain's key), `vchan:NAME`, or a way to open a channel.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_CLOSED` or `ERR_CLOUDAPP_TIMEOUT` if it can not be reached,
   *   `ERR_CLOUDAPP_UNSUPPORTED` if it speaks no version this client knows, `ERR_CLOUDAPP_ABORTED`, `ERR_CLOUDAPP_PROOF` or
   *   `ERR_CLOUDAPP_EXPIRED` for a pass it does not take.
   */
  static async connect(
    endpoint: Endpoint | string | (() => Promise<Channel>),
    options: ConnectOptions = {},
  ): Promise<SdClient> {
    checkOptions('SdClient.connect', options, ['signal', 'name', 'reconnectMs', 'key', 'pass'])
    const link = new ClientLink(opener(endpoint, options.key), options, options.reconnectMs ?? 60_000)
    try {
      await link.open(options.signal)
    } catch (error) {
      await link.close()
      throw error
    }
    return new SdClient(link)
  }

  /** Fires when this client was closed. A service domain that went away does not fire it: calls connect again. */
  get closed(): AbortSignal {
    return this.#link.closed
  }

  /** What the service domain says of itself. */
  async describe(options: ClientCall = {}): Promise<Description> {
    checkOptions('describe', options, ['signal'])
    const wire = await this.#link.call((service) => service.describe(), options.signal)
    return answer('describe', ANSWERS.description, wire)
  }

  /** How the service domain is, as far as it concerns this client's VMs. */
  async health(options: ClientCall = {}): Promise<Health> {
    checkOptions('health', options, ['signal'])
    const wire = await this.#link.call((service) => service.health(), options.signal)
    return answer('health', ANSWERS.health, wire)
  }

  /**
   * Asks for a scan now. Leaving the iteration early cancels it.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` if there is nothing to scan.
   */
  async run(options: { readonly vm?: string; readonly signal?: AbortSignal } = {}): Promise<ClientRun> {
    checkOptions('run', options, ['vm', 'signal'])
    const { vm, signal } = options
    const { session, service } = await this.#link.open(signal)
    const run = await ask(session, () => service.run(vm === undefined ? {} : { vm }), signal)
    return runEvents(session, run, signal)
  }

  /** Idempotent; ends every watch and call. */
  async close(): Promise<void> {
    await this.#link.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async *#list(options: ListOptions): AsyncGenerator<ClientFinding, undefined> {
    checkOptions('findings.list', options, ['minSeverity', 'status', 'vm', 'since', 'limit', 'signal', 'onGap'])
    const { limit = Number.POSITIVE_INFINITY, signal, onGap, ...filter } = options
    let since = filter.since
    for (let left = limit; left > 0; ) {
      const query = { ...filterOf(filter), ...(since !== undefined && { since }), limit: Math.min(left, 200) }
      const wire = await this.#link.call((service) => service.findings.list(query), signal)
      const page = answer('findings.list', ANSWERS.page, wire)
      if (page.gap) onGap?.({ count: page.gap.count, exact: page.gap.exact, reason: 'retention' })
      for (const finding of page.findings) {
        yield clientFinding(finding)
        left--
        if (left <= 0) return
      }
      // A page that has more but does not move would be asked for without end.
      if (!page.more || page.next === undefined || page.next === since) return
      since = page.next
    }
  }
}

/** How to open a channel to an endpoint. Throws ERR_CLOUDAPP_INVALID_ARGUMENT, ERR_CLOUDAPP_UNSUPPORTED. */
export function opener(endpoint: Endpoint | string | (() => Promise<Channel>), key?: KeyPair): Connect {
  if (typeof endpoint === 'function') return () => endpoint()
  const text = typeof endpoint === 'string' ? endpoint : endpoint?.endpoint
  if (typeof text !== 'string' || text === '') {
    throw new CloudAppError(
      'ERR_CLOUDAPP_INVALID_ARGUMENT',
      'An endpoint is a path, unix:/path, tls:HOST:PORT#ed25519:…, vchan:NAME, or what discover gives',
    )
  }
  checkEndpoint(text, key && { key })
  return (signal) => connectEndpoint(text, { ...(key && { key }), ...(signal && { signal }) })
}
