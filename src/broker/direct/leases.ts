import { join } from 'node:path'
import { type Clock, openClock } from '../../capabilities/clock.js'
import { readBounded, replaceFile } from '../../capabilities/files.js'
import { LATCH } from '../../capabilities/flask/names.js'
import type { PublicKey } from '../../capabilities/keys.js'
import { CloudAppError } from '../../errors.js'
import type { FlaskHost } from '../../host/flask.js'
import type { Host } from '../../host/host.js'
import { DIRECT_LIMITS, type DirectEnd, type DirectLease, FileSchema, parseDirect } from './lease.js'

/** ms between two looks at the clock: a lease ends at most so much late, and the work of ending it on top. */
const TICK_MS = 500
/** ms between two looks whether the domains of the leases are still the ones they were. */
const WATCH_MS = 10_000
/** So often a switch that can not be turned off is tried before the service domain is destroyed instead. */
const TRIES = 3

export interface DirectLeasesOptions {
  /** Folder of what must survive: the leases, the clock's mark. */
  readonly state: string
  readonly host: Host
  readonly flask: FlaskHost
  /** Told when ending a lease failed, and will be tried again. */
  readonly onTrouble?: (lease: DirectLease, error: unknown) => void
}

/**
 * The leases of direct access, and their end: at their time, when their token is revoked, when one of their domains has gone.
 *
 * A lease is on the disk before its first switch is on. Nothing is turned on at a start, so that a supervisor that was killed
 * and comes back ends what there is and revives nothing.
 */
export class DirectLeases {
  readonly #options: DirectLeasesOptions
  readonly #file: string
  readonly #clock: Clock
  readonly #leases = new Map<string, DirectLease>()
  /** Leases whose end has begun and could not be finished, and how often it was tried. */
  readonly #ending = new Map<string, { hard: boolean; tries: number }>()
  #queue: Promise<unknown> = Promise.resolve()
  #timer: NodeJS.Timeout | undefined
  #watched = 0

  private constructor(options: DirectLeasesOptions, clock: Clock) {
    this.#options = options
    this.#file = join(options.state, 'direct.json')
    this.#clock = clock
  }

  /**
   * Reads the leases that were left, ends those whose time has passed, and goes on.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_STORE` if the file of leases is damaged: the switches it knew may be on.
   */
  static async open(options: DirectLeasesOptions): Promise<DirectLeases> {
    const leases = new DirectLeases(options, openClock({ path: join(options.state, 'direct.clock') }))
    await leases.#read()
    await leases.#tick()
    return leases
  }

  list(): DirectLease[] {
    return [...this.#leases.values()]
  }

  /**
   * Turns a lease's switches on. All or none: after a failure those that were turned on are off again.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_EXPIRED`, `ERR_CLOUDAPP_LIMIT`, `ERR_CLOUDAPP_NOT_FOUND` if a domain is not the one the
   *   lease names, and what Xen says.
   */
  start(lease: DirectLease): Promise<void> {
    return this.#inTurn(async () => {
      if (!(this.#clock.now() < lease.expires)) {
        throw new CloudAppError('ERR_CLOUDAPP_EXPIRED', 'the time of the lease has passed', { vm: lease.client.name })
      }
      if (this.#leases.size >= DIRECT_LIMITS.leases) {
        throw new CloudAppError(
          'ERR_CLOUDAPP_LIMIT',
          `there are ${DIRECT_LIMITS.leases} leases of direct access already`,
        )
      }
      if (this.#leases.has(lease.id)) {
        throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `there is a lease ${lease.id} already`)
      }
      const there = await this.#options.host.list()
      for (const { domid, uuid, name } of [lease.service, lease.client]) {
        if (there.some((domain) => domain.domid === domid && domain.uuid === uuid)) continue
        throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `domain ${domid} is not ${name} (${uuid})`, { vm: name })
      }
      this.#leases.set(lease.id, lease)
      await this.#write()
      try {
        for (const name of lease.booleans) await this.#options.flask.set(name, true)
      } catch (error) {
        await this.#end(lease, false)
        throw error
      }
      this.#arm()
    })
  }

  /**
   * Ends what a block of a token gave. `hard` destroys the service domains too, so that their mappings go with them.
   *
   * @throws what Xen or the toolstack says; the end is tried again until it is done.
   */
  endBlock(issuer: PublicKey, block: string, hard: boolean): Promise<DirectEnd> {
    return this.#inTurn(() =>
      this.#endAll(
        this.list().filter((lease) => lease.issuer === issuer && lease.blocks.includes(block)),
        hard,
      ),
    )
  }

  /** Stops watching. What is on stays on, for the next one to end. */
  async close(): Promise<void> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    await this.#queue
    this.#clock.close()
  }

  /** Of several failures the first is thrown, when all have been tried. */
  async #endAll(leases: readonly DirectLease[], hard: boolean): Promise<DirectEnd> {
    const destroyed = new Set<string>()
    let ended = 0
    let failure: unknown
    for (const lease of leases) {
      // One that ended with another, by a switch or a service domain they share.
      if (!this.#leases.has(lease.id)) continue
      try {
        if (await this.#end(lease, hard)) destroyed.add(lease.service.name)
        ended++
      } catch (error) {
        failure ??= error
      }
    }
    this.#arm()
    if (failure !== undefined) throw failure
    return { ended, destroyed: [...destroyed] }
  }

  /** True if the service domain was destroyed. */
  async #end(lease: DirectLease, hard: boolean): Promise<boolean> {
    const state = this.#ending.get(lease.id) ?? { hard: false, tries: 0 }
    this.#ending.set(lease.id, state)
    state.hard ||= hard || lease.end === 'destroy'
    state.tries++
    let failure: unknown
    try {
      for (const name of lease.booleans) if (!this.#needed(name, lease)) await this.#off(name)
    } catch (error) {
      failure = error
    }
    // A right that can not be taken back is taken from who holds it.
    const destroys = state.hard || (failure !== undefined && state.tries >= TRIES)
    if (destroys) {
      await this.#destroy(lease)
      failure = undefined
    }
    if (failure !== undefined) throw failure
    this.#ending.delete(lease.id)
    this.#leases.delete(lease.id)
    await this.#write()
    await this.#alongWith(lease, destroys)
    return destroys
  }

  async #off(name: string): Promise<void> {
    const { flask } = this.#options
    try {
      await flask.set(name, false)
    } catch (error) {
      // Gone with a policy that was loaded since, or off already: a locked policy lets nobody touch its latch any more then.
      if ((await flask.booleans()).get(name) === true) throw error
    }
  }

  async #destroy({ service }: DirectLease): Promise<void> {
    try {
      await this.#options.host.destroy(service.domid, service.uuid)
    } catch (error) {
      // It has gone by itself: so have its mappings.
      if (!CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) throw error
    }
  }

  /** What ended with a lease, whether it was meant or not: what shared its latch, or its service domain. */
  async #alongWith(lease: DirectLease, destroyed: boolean): Promise<void> {
    const shared = (other: DirectLease): boolean =>
      (lease.booleans.includes(LATCH) && other.booleans.includes(LATCH)) ||
      (destroyed && other.service.uuid === lease.service.uuid && other.service.domid === lease.service.domid)
    for (const other of this.list().filter(shared)) if (this.#leases.has(other.id)) await this.#end(other, false)
  }

  /** A switch of two tokens for the same right stays on while one of them lives. The latch ends all: it has no second side. */
  #needed(name: string, lease: DirectLease): boolean {
    if (name === LATCH) return false
    return this.list().some(
      (other) => other.id !== lease.id && other.booleans.includes(name) && !this.#ending.has(other.id),
    )
  }

  async #tick(): Promise<void> {
    await this.#inTurn(async () => {
      const now = this.#clock.now()
      const over = this.list().filter((lease) => !(now < lease.expires) || this.#ending.has(lease.id))
      for (const lease of [...over, ...(await this.#vanished())]) {
        if (!this.#leases.has(lease.id)) continue
        await this.#end(lease, false).catch((error: unknown) => this.#options.onTrouble?.(lease, error))
      }
    })
    this.#arm()
  }

  /** Leases one of whose domains is not there any more: a client that was started anew is another boot, another consent. */
  async #vanished(): Promise<DirectLease[]> {
    const now = performance.now()
    if (this.#leases.size === 0 || now - this.#watched < WATCH_MS) return []
    this.#watched = now
    try {
      const there = new Set((await this.#options.host.list()).map(({ domid, uuid }) => `${domid} ${uuid}`))
      return this.list().filter(({ service, client }) =>
        [service, client].some(({ domid, uuid }) => !there.has(`${domid} ${uuid}`)),
      )
    } catch (error) {
      const [first] = this.#leases.values()
      if (first !== undefined) this.#options.onTrouble?.(first, error)
      return []
    }
  }

  #arm(): void {
    clearTimeout(this.#timer)
    this.#timer = this.#leases.size === 0 ? undefined : setTimeout(() => void this.#tick(), TICK_MS)
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#queue.then(work)
    this.#queue = turn.catch(() => {})
    return turn
  }

  async #read(): Promise<void> {
    let json: string
    try {
      json = await readBounded(this.#file, DIRECT_LIMITS.file, 'the file of leases')
    } catch (error) {
      if (CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) return
      throw error
    }
    try {
      for (const lease of parseDirect(this.#file, FileSchema, json).leases) this.#leases.set(lease.id, lease)
    } catch (cause) {
      throw new CloudAppError('ERR_CLOUDAPP_STORE', `${this.#file} is damaged; switches it knew may be on`, { cause })
    }
  }

  async #write(): Promise<void> {
    await replaceFile(this.#file, `${JSON.stringify({ version: 1, leases: this.list() })}\n`, 0o600)
  }
}
