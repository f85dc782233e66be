import { mkdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { type Clock, openClock } from '../capabilities/clock.js'
import type { KeyPair, PublicKey } from '../capabilities/keys.js'
import { OwnerRegister } from '../capabilities/owners.js'
import { recheckToken } from '../capabilities/verify.js'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import { type Channel, quotaGroup } from '../transport/channel.js'
import { listenEndpoint } from '../transport/endpoint.js'
import { memoryChannelPair } from '../transport/memory.js'
import { Turns } from '../transport/turns.js'
import { openVm } from '../vmi/sources/open.js'
import { recoverVms } from '../vmi/sources/recover.js'
import { toldOf } from '../vmi/sources/recovered.js'
import { AuditLog, type AuditLogOptions } from './audit/log.js'
import { Connection } from './connection.js'
import type { BrokerCore } from './core.js'
import { DirectClient } from './direct/client.js'
import type { Lease } from './lease.js'
import { Meter } from './meter.js'
import { Recorder } from './recorder.js'
import { Results } from './results.js'
import { SeenBlocks } from './seen.js'
import { BrokerState } from './state.js'
import { type OpenSource, VmPool } from './vms.js'

/** Connections at once, over all sockets, and of one user or address: so that one can not take all of them. */
const MAX_CONNECTIONS = 1024
const MAX_OF_USER = 256

/** How much of the audit log one delegate may fill if nothing is said: about 60 KiB a second. */
const QUOTA = { recordsPerSecond: 200, burst: 4000 }

/** Letters of what was recovered, in the log. */
const TOLD = 1000

export interface BrokerOptions {
  /** The broker's own key: the audience of tokens, and what signs the audit log's heads. */
  readonly key: KeyPair
  /** The host's register of who owns which VM; a path, or one that is open. */
  readonly register: string | OwnerRegister
  /** Folder of what must survive: revocations, use counts, the clock's mark, the audit log. Made if missing, mode 0700. */
  readonly state: string
  /** How the audit log is kept; its path is `audit.log` in the state folder by default. */
  readonly audit?: Partial<Pick<AuditLogOptions, 'path' | 'fsync' | 'intervalMs' | 'quota' | 'segmentBytes'>>
  /** Longest pause of a VM at a time, in ms, whatever a token says. 5,000 by default. */
  readonly maxPauseMs?: number
  /** Opens a VM's source; `openVm` by default. */
  readonly open?: OpenSource
  /** Socket of the supervisor of direct access (docs/flask.md), on a host where Xen enforces delegations. */
  readonly supervisor?: string
}

export interface BrokerListenOptions {
  /** A path of a unix socket, or an endpoint: `unix:/path`, `tls:HOST:PORT`. */
  readonly socket: string
  /** Permissions of a unix socket; 0o600 by default. */
  readonly mode?: number
}

/**
 * The privilege monitor: the only one that opens VMs. It verifies tokens, checks and debits every operation, records it,
 * and ends at once what is revoked.
 */
export interface Broker extends AsyncDisposable {
  readonly publicKey: PublicKey
  /** Takes connections on an endpoint, beside others. @throws as `listenEndpoint` */
  listen(options: BrokerListenOptions): Promise<{ readonly address: string; close(): Promise<void> }>
  /** A connection from this same process, for `connectBroker({ channel })` and `connectOwner({ channel })`. */
  connect(): Channel
  /** Reads the register again; capabilities over VMs that changed hands or were started anew end. */
  reload(): Promise<void>
  /** Sessions and live capabilities, for metrics. */
  stats(): { readonly sessions: number; readonly leases: number }
  /** Ends every session, lets paused VMs run on, writes what is to be kept. Idempotent. */
  close(): Promise<void>
}

const OPTIONS = ['key', 'register', 'state', 'audit', 'maxPauseMs', 'open', 'supervisor'] as const

/**
 * Opens a broker in this process.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_STORE` or `ERR_CLOUDAPP_AUDIT` if what it kept is damaged, and what reading the
 *   register throws.
 */
export async function openBroker(options: BrokerOptions): Promise<Broker> {
  checkOptions('openBroker', options, OPTIONS)
  checkOptions('openBroker audit', options.audit, ['path', 'fsync', 'intervalMs', 'quota', 'segmentBytes'])
  await ownFolder(options.state)
  const register = typeof options.register === 'string' ? await OwnerRegister.open(options.register) : options.register
  const clock = openClock({ path: join(options.state, 'clock') })
  const state = await BrokerState.open(options.state, () => clock.now())
  const audit = await AuditLog.open({
    path: join(options.state, 'audit.log'),
    quota: QUOTA,
    ...options.audit,
    key: options.key,
    clock,
  })
  const broker = new OpenBroker(options, register, clock, state, audit)
  await broker.core.recorder.must({
    action: 'broker.start',
    outcome: 'allowed',
    details: { vms: register.list().length, ...(await recovered(register)) },
  })
  return broker
}

/**
 * What was undone of what a broker left in VMs that was killed with all its helpers: nobody may ask for a VM soon that
 * stands still since then. That it can not be undone keeps nobody from the other VMs.
 */
async function recovered(register: OwnerRegister): Promise<Record<string, string>> {
  if (!register.list().some(({ source }) => /^(qemu|xen):/.test(source))) return {}
  try {
    const vms = await recoverVms()
    return vms.length === 0 ? {} : { recovered: vms.map(toldOf).join('; ').slice(0, TOLD) }
  } catch (error) {
    return { recoveryFailed: (error instanceof Error ? error.message : String(error)).slice(0, TOLD) }
  }
}

/** Makes the folder if it is missing. One that others can write to, they can also put links in: it is refused. */
async function ownFolder(path: string): Promise<void> {
  await mkdir(path, { recursive: true, mode: 0o700 })
  const { mode, uid } = await stat(path)
  const bad = (why: string) => new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `the folder ${path} ${why}`)
  if ((mode & 0o022) !== 0) throw bad(`may be written by others; make it safe with: chmod go-w ${path}`)
  if (uid !== 0 && uid !== process.geteuid?.()) throw bad('belongs to another user')
}

class OpenBroker implements Broker {
  readonly core: BrokerCore
  readonly #connections = new Set<Connection>()
  readonly #listeners = new Set<{ close(): Promise<void> }>()
  readonly #users = new Map<string, number>()
  #serial = 0
  #closing: Promise<void> | undefined

  constructor(options: BrokerOptions, register: OwnerRegister, clock: Clock, state: BrokerState, audit: AuditLog) {
    this.core = {
      key: options.key,
      register,
      clock,
      state,
      audit,
      meter: new Meter(state),
      recorder: new Recorder(audit),
      vms: new VmPool(register, state, options.open ?? openVm),
      turns: new Turns(),
      maxPauseMs: options.maxPauseMs ?? 5000,
      leases: new Set(),
      seen: new SeenBlocks(),
      ...(options.supervisor === undefined ? {} : { direct: new DirectClient(options.supervisor) }),
      held: new Map(),
      results: new Results(),
      end: (lease, reason) => this.#end(lease, reason),
    }
    this.core.vms.onGone = (uuid, reason) => {
      for (const lease of this.core.leases) if (lease.uuid === uuid) this.#end(lease, reason)
    }
  }

  get publicKey(): PublicKey {
    return this.core.key.publicKey
  }

  async listen(options: BrokerListenOptions): Promise<{ readonly address: string; close(): Promise<void> }> {
    checkOptions('Broker.listen', options, ['socket', 'mode'])
    this.#open()
    const listener = await listenEndpoint(options.socket, {
      key: this.core.key,
      ...(options.mode === undefined ? {} : { mode: options.mode }),
      onChannel: (channel) => this.#take(channel),
      maxChannels: MAX_CONNECTIONS,
    })
    this.#listeners.add(listener)
    return listener
  }

  connect(): Channel {
    this.#open()
    const [ours, theirs] = memoryChannelPair(['broker', 'holder'])
    this.#take(ours)
    return theirs
  }

  async reload(): Promise<void> {
    const { register, vms, clock, state, leases } = this.core
    await register.reload()
    await vms.refresh()
    for (const lease of leases) {
      const { token } = lease
      try {
        recheckToken(token, {
          ownerOf: register.ownerOf,
          now: clock.now(),
          revoked: (id) => state.revokedAt(token.issuer, id) !== undefined,
        })
      } catch (error) {
        if (!CloudAppError.is(error)) throw error
        this.#end(lease, error)
      }
    }
  }

  stats(): { readonly sessions: number; readonly leases: number } {
    return { sessions: this.#connections.size, leases: this.core.leases.size }
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(): Promise<void> {
    const { leases, vms, state, audit, clock, recorder } = this.core
    await Promise.all([...this.#listeners].map((listener) => listener.close()))
    const all = [...leases]
    for (const lease of all) this.#end(lease, new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The broker is closing'))
    await Promise.all(all.map((lease) => lease.drained()))
    await Promise.all([...this.#connections].map((connection) => connection.close()))
    // The records of the leases that ended stand before the last one.
    await new Promise<void>((resolve) => setImmediate(resolve))
    await vms.close()
    await recorder.vital({ action: 'broker.stop', outcome: 'allowed' })
    await state.close()
    await audit.close().catch(() => undefined)
    clock.close()
  }

  #take(channel: Channel): void {
    const user = quotaGroup(channel.peer)
    const used = this.#users.get(user) ?? 0
    if (used >= MAX_OF_USER || this.#connections.size >= MAX_CONNECTIONS) {
      // Whoever came and has nothing to show makes room: those who hold something are not shut out by silence.
      const of = [...this.#connections].find((one) => one.idleStranger && (used < MAX_OF_USER || one.group === user))
      void of?.close()
    }
    const connection =
      this.#closing === undefined && this.#connections.size < MAX_CONNECTIONS && used < MAX_OF_USER
        ? this.#connection(channel)
        : undefined
    if (connection === undefined) {
      void channel.close()
      return
    }
    this.#connections.add(connection)
    this.#users.set(user, used + 1)
    const gone = () => {
      this.#connections.delete(connection)
      const left = (this.#users.get(user) ?? 1) - 1
      if (left === 0) this.#users.delete(user)
      else this.#users.set(user, left)
    }
    connection.closed.addEventListener('abort', gone, { once: true })
  }

  /** Undefined for a peer that can not be identified: it has no business here. */
  #connection(channel: Channel): Connection | undefined {
    try {
      return new Connection(this.core, channel, `s${++this.#serial}`)
    } catch {
      return undefined
    }
  }

  #end(lease: Lease, reason: CloudAppError): void {
    const { leases, held } = this.core
    if (!leases.delete(lease)) return
    const left = (held.get(lease.delegate) ?? 1) - 1
    if (left === 0) held.delete(lease.delegate)
    else held.set(lease.delegate, left)
    lease.end(reason)
    // A hundred may end together: their records wait until each has ended and what is on its way has left.
    setImmediate(() => void this.core.recorder.ended(lease, reason))
  }

  #open(): void {
    if (this.#closing !== undefined) throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The broker is closed')
  }
}
