import { RpcTarget } from 'capnweb'
import { isPublicKey } from '../../capabilities/keys.js'
import { type Pass, verifyPass } from '../../capabilities/pass.js'
import { CloudAppError } from '../../errors.js'
import type { Run } from '../runs.js'
import { Asker, type ClientState } from './asker.js'
import { FindingsTarget } from './findings-target.js'
import {
  type Description,
  type Health,
  INTERFACE_LIMITS,
  INTERFACE_VERSION,
  OLDEST_VERSION,
  type OpenAnswer,
  REQUESTS,
  type RunEvent,
  request,
  type WireArtifactPart,
  type WireArtifacts,
  type WireRoot,
  type WireRun,
  type WireService,
} from './protocol.js'

/** What a client finds first. */
export class Root extends RpcTarget implements WireRoot {
  readonly #state: ClientState

  constructor(state: ClientState) {
    super()
    this.#state = state
  }

  async open(given: unknown): Promise<OpenAnswer> {
    const { version: newest, pass } = request('open', REQUESTS.open, given)
    const version = Math.min(newest, INTERFACE_VERSION)
    if (version < OLDEST_VERSION) {
      throw new CloudAppError(
        'ERR_CLOUDAPP_UNSUPPORTED',
        `This service domain speaks versions from ${OLDEST_VERSION} on`,
      )
    }
    return { version, service: new Service(new Asker(this.#state, pass === undefined ? undefined : this.#check(pass))) }
  }

  #check(pass: string): Pass {
    const { key } = this.#state.backend.describe().service
    if (!isPublicKey(key)) throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', 'This service domain has no key')
    return verifyPass(pass, { service: key, channel: this.#state.channel.binding })
  }
}

class Service extends RpcTarget implements WireService {
  readonly #asker: Asker
  readonly #findings: FindingsTarget
  readonly #artifacts: ArtifactsTarget

  constructor(asker: Asker) {
    super()
    this.#asker = asker
    this.#findings = new FindingsTarget(asker)
    this.#artifacts = new ArtifactsTarget(asker)
  }

  get findings(): FindingsTarget {
    return this.#findings
  }

  get artifacts(): ArtifactsTarget {
    return this.#artifacts
  }

  async describe(): Promise<Description> {
    return this.#asker.backend.describe()
  }

  async health(): Promise<Health> {
    return this.#asker.backend.health.report(this.#asker.scope(), this.#asker.backend.vms())
  }

  async run(given: unknown = {}): Promise<WireRun> {
    const { vm } = request('run', REQUESTS.run, given)
    this.#asker.state.assertRoom('runs')
    const run = this.#asker.backend.run(this.#asker.scope(), vm)
    // The same words for a VM that does not exist, one of another tenant, and one nobody scans.
    if (!run) throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', 'There is nothing to scan')
    this.#asker.state.addRun(run)
    return new RunTargetWire(this.#asker.state, run)
  }
}

class ArtifactsTarget extends RpcTarget implements WireArtifacts {
  readonly #asker: Asker

  constructor(asker: Asker) {
    super()
    this.#asker = asker
  }

  async read(given: unknown): Promise<WireArtifactPart> {
    const {
      finding,
      digest,
      at = 0,
      length = INTERFACE_LIMITS.artifactBytes,
    } = request('artifacts.read', REQUESTS.artifact, given)
    const { store, findings } = this.#asker.backend
    const kept = store.artifact(finding, digest, this.#asker.scope())
    // The same words whether the finding, or the artifact, is missing or another tenant's.
    if (!kept) throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', 'The finding names no such artifact that is kept')
    return { bytes: await findings.artifacts.read(digest, at, length), total: kept.bytes }
  }
}

class RunTargetWire extends RpcTarget implements WireRun {
  readonly #state: ClientState
  readonly #run: Run

  constructor(state: ClientState, run: Run) {
    super()
    this.#state = state
    this.#run = run
  }

  async next(given: unknown = {}): Promise<{ events: RunEvent[] }> {
    const { waitMs = INTERFACE_LIMITS.waitMs } = request('run.next', REQUESTS.runNext, given)
    return { events: await this.#run.next(waitMs) }
  }

  cancel(): void {
    this.#run.cancel()
  }

  /** Called when the client lets go of it. */
  [Symbol.dispose](): void {
    this.#state.dropRun(this.#run)
  }
}
