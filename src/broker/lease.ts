import { setMaxListeners } from 'node:events'
import type { VmInfo } from '../capabilities/delegation.js'
import { eventRights } from '../capabilities/event-rights.js'
import type { PublicKey } from '../capabilities/keys.js'
import { deniedError, type Right } from '../capabilities/rights.js'
import { checkSyscalls } from '../capabilities/syscall-limit.js'
import { recheckToken, type VerifiedToken } from '../capabilities/verify.js'
import { CloudAppError } from '../errors.js'
import type { Gate } from '../transport/gate.js'
import { compileProgram } from '../vmi/events/compile.js'
import type { EventProgram } from '../vmi/events/program.js'
import type { EventSupport } from '../vmi/events/source.js'
import type { GuestVm, VcpuRegisters } from '../vmi/guest.js'
import { type CallOptions, LIMITS } from '../vmi/memory.js'
import type { BrokerCore } from './core.js'
import { HeldEvents, type SubscriptionQuota } from './held-events.js'
import { HeldPause, LONGEST_TIMER } from './held-pause.js'
import type { ChainMeter } from './meter.js'
import { TurnPace } from './pace.js'
import { lengthOf, type Outlet } from './results.js'
import { ScopedAccess } from './scope/access.js'
import { checkBreakpoint, checkProgram } from './scope/programs.js'

/** To whom a token's root block was made out. */
export function delegateOf({ blocks }: VerifiedToken): PublicKey {
  return (blocks[0] as VerifiedToken['blocks'][number]).holder
}

/** What an operation passes on to the memory. */
export type OperationCall = Required<CallOptions>

/** One operation as the lease sees it. */
export interface Operation<T> {
  readonly right: Right
  /** Bytes its result may have, at most: held against the memory of the broker. */
  readonly weight: number
  /** Writes the record of it, where one of its own is wanted instead of one for many. */
  record?(): Promise<void>
  /** Refuses what the grant's scope does not reach. */
  check?(): void
  /** The operation itself: its signal ends it between slices, its pace says when they are. */
  run(vm: GuestVm, call: OperationCall): Promise<T>
  /** Bytes of guest data in the result. */
  bytes(result: T): number
}

/**
 * One redeemed token: a live capability. Every operation goes through {@link run}, which checks the token as it is at that
 * moment, debits every block of it, records it, and gives out no result after the lease has ended.
 */
export class Lease {
  readonly #core: BrokerCore
  readonly #gate: Gate
  readonly #quota: SubscriptionQuota
  readonly #outlet: Outlet
  readonly #meter: ChainMeter
  readonly #ended = new AbortController()
  readonly #jobs = new Map<number, AbortController>()
  readonly #pauses = new Set<HeldPause>()
  readonly #idle: (() => void)[] = []
  /** The VM's memory as far as the grant reaches it. */
  readonly scope: ScopedAccess
  #running = 0
  #timer: NodeJS.Timeout | undefined

  constructor(
    core: BrokerCore,
    readonly token: VerifiedToken,
    readonly vmName: string,
    readonly session: string,
    gate: Gate,
    quota: SubscriptionQuota,
    outlet: Outlet,
  ) {
    this.#core = core
    this.#gate = gate
    this.#quota = quota
    this.#outlet = outlet
    this.#meter = core.meter.chain(token)
    core.seen.add(token)
    // Each operation under way waits for its turn, or for the end.
    setMaxListeners(0, this.#ended.signal)
    this.scope = new ScopedAccess(token.grant, () => [...this.#pauses].find((held) => !held.ending))
    this.#armExpiry()
  }

  get ended(): AbortSignal {
    return this.#ended.signal
  }

  /** The last block of the chain: what the audit log names. */
  get block(): string {
    return this.token.ids[this.token.ids.length - 1] as string
  }

  /** To whom the owner made the token out: what is bounded for each delegate is shared by all it was narrowed for. */
  get delegate(): PublicKey {
    return delegateOf(this.token)
  }

  get uuid(): string {
    return this.token.grant.vm.uuid
  }

  budget(): ReturnType<ChainMeter['budget']> {
    this.#alive()
    return this.#meter.budget(this.token.grant.expires - this.#core.clock.now())
  }

  /**
   * Runs one operation.
   *
   * @param job a number by which {@link cancel} finds it; 0 for none
   * @throws CloudAppError `ERR_CLOUDAPP_DENIED`, `ERR_CLOUDAPP_REVOKED`, `ERR_CLOUDAPP_EXPIRED`, `ERR_CLOUDAPP_LIMIT`,
   *   `ERR_CLOUDAPP_AUDIT`, `ERR_CLOUDAPP_ABORTED`, and what the operation throws.
   */
  async run<T>(action: string, operation: Operation<T>, job = 0): Promise<T> {
    const recorder = this.#core.recorder
    this.#running++
    let cancel: AbortController | undefined
    try {
      this.#admit(operation)
      cancel = this.#begin(job)
      const debited = this.#meter.operation()
      if (debited !== undefined) await debited
      const recorded = operation.record?.() ?? recorder.operation(this, action, operation.right)
      if (recorded !== undefined) await recorded
      return await this.#inTurn(operation.weight, async () => {
        // What was cancelled while it waited is not begun.
        cancel?.signal.throwIfAborted()
        const result = await this.#perform(operation, cancel?.signal)
        const bytes = operation.bytes(result)
        const counted = this.#meter.output(bytes)
        if (counted !== undefined) await counted
        recorder.output(this, action, bytes)
        // The last word: nothing leaves after the end, whatever was on its way.
        this.#alive()
        return result
      })
    } catch (error) {
      throw this.#refused(action, operation.right, error)
    } finally {
      if (cancel !== undefined) this.#jobs.delete(job)
      this.#running--
      if (this.#running === 0) for (const resolve of this.#idle.splice(0)) resolve()
    }
  }

  /** Ends the job between two slices; what has ended already is let be. */
  cancel(job: number): void {
    this.#jobs.get(job)?.abort(new CloudAppError('ERR_CLOUDAPP_ABORTED', 'The holder cancelled the operation'))
  }

  /** Records that a right which is not held was asked for. */
  async denied(right: Right): Promise<void> {
    this.#alive()
    await this.#core.recorder.refused(this, right, right, deniedError(right, this.token.grant.rights, this.vmName))
  }

  async info(): Promise<VmInfo> {
    return this.run('vm.info', { right: 'vm.info', weight: 0, bytes: () => 0, run: infoOf })
  }

  async registers(): Promise<VcpuRegisters[]> {
    return this.run('vcpu.read', {
      right: 'vcpu.read',
      weight: 4096,
      bytes: (registers) => registers.length * 128,
      run: async (vm, { signal }) => {
        if (vm.vcpus === undefined) throw unsupported('registers', this.vmName)
        return vm.vcpus.registers({ signal })
      },
    })
  }

  /** Holds the VM paused; let go of by the holder, or at the end of its budget, of the lease, or of the broker's patience. */
  async pause(): Promise<HeldPause> {
    const budget = Math.min(this.#meter.pauseBudget(), this.#core.maxPauseMs)
    return this.run('vm.pause', {
      right: 'vm.pause',
      weight: 0,
      bytes: () => 0,
      run: async (vm) => {
        if (vm.pause === undefined) throw unsupported('pause', this.vmName)
        const held = new HeldPause(await vm.pause(), budget, (ms) => {
          this.#meter.paused(ms)
          this.#pauses.delete(held)
          void this.#core.recorder.unpaused(this, ms)
        })
        this.#pauses.add(held)
        return held
      },
    })
  }

  /** Subscribes to events; they end with the lease. */
  async subscribe(value: unknown, buffer: number | undefined): Promise<HeldEvents> {
    this.#alive()
    const program = compileProgram(value as EventProgram)
    const { grant } = this.token
    const [right] = eventRights(program) as [Right]
    this.#quota.take()
    let held: HeldEvents | undefined
    try {
      held = await this.run('events.subscribe', {
        right,
        weight: 0,
        bytes: () => 0,
        check: () => checkProgram(grant, program, this.vmName),
        record: () => this.#core.recorder.subscribed(this, right, program),
        run: async (vm) => {
          if (vm.events === undefined) throw unsupported('events', this.vmName)
          await checkBreakpoint(grant, program, vm, this.scope)
          const stream = await vm.events.subscribe(value as EventProgram, buffer === undefined ? {} : { buffer })
          return new HeldEvents(
            program,
            stream,
            this.ended,
            (encode) => this.#handOut(right, encode),
            (counts) => {
              this.#quota.give()
              void this.#core.recorder.unsubscribed(this, right, program, counts)
            },
          )
        },
      })
      return held
    } finally {
      if (held === undefined) this.#quota.give()
    }
  }

  /** What the host traps. */
  async eventSupport(): Promise<EventSupport> {
    const right = this.token.grant.rights.includes('events.memory') ? 'events.memory' : 'events.register'
    return this.run('events.support', {
      right,
      weight: 0,
      bytes: () => 0,
      run: async (vm) => {
        if (vm.events === undefined) throw unsupported('events', this.vmName)
        return vm.events.support()
      },
    })
  }

  #handOut(right: Right, encode: () => Uint8Array): Promise<Uint8Array> {
    return this.run('events.batch', {
      right,
      weight: LIMITS.readLength,
      bytes: (message) => message.length,
      run: async () => encode(),
    })
  }

  /** Ends the lease: nothing is given out any more from this moment on. */
  end(reason: CloudAppError): void {
    if (this.#ended.signal.aborted) return
    clearTimeout(this.#timer)
    this.#ended.abort(reason)
    for (const held of this.#pauses) void held.close()
  }

  /** Resolves when no operation of this lease runs any more. */
  drained(): Promise<void> {
    if (this.#running === 0) return Promise.resolve()
    return new Promise((resolve) => this.#idle.push(resolve))
  }

  #admit(operation: Operation<unknown>): void {
    this.#alive()
    const { token } = this
    try {
      recheckToken(token, {
        ownerOf: this.#core.register.ownerOf,
        now: this.#core.clock.now(),
        revoked: (id) => this.#core.state.revokedAt(token.issuer, id) !== undefined,
      })
    } catch (error) {
      if (CloudAppError.is(error)) this.#core.end(this, error)
      throw error
    }
    const { rights } = token.grant
    if (!rights.includes(operation.right)) throw deniedError(operation.right, rights, this.vmName)
    checkSyscalls(token.grant, operation.right, this.vmName)
    operation.check?.()
  }

  /** From now on the job can be cancelled. */
  #begin(job: number): AbortController | undefined {
    if (job === 0) return undefined
    if (this.#jobs.has(job)) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `The job ${job} runs already`)
    const cancel = new AbortController()
    this.#jobs.set(job, cancel)
    return cancel
  }

  /** Waits until there is room for a result of at most `weight` bytes, in the session and with the delegate. */
  async #inTurn<T>(weight: number, work: () => Promise<T>): Promise<T> {
    const { results } = this.#core
    const waiting = this.#gate.enter(weight)
    if (waiting !== undefined) await waiting
    try {
      const room = results.enter(this.delegate, weight)
      if (room !== undefined) await room
      let given = 0
      try {
        const result = await work()
        given = lengthOf(result)
        return result
      } finally {
        results.leave(this.delegate, weight, given, this.#outlet)
      }
    } finally {
      this.#gate.leave(weight)
    }
  }

  async #perform<T>(operation: Operation<T>, cancelled: AbortSignal | undefined): Promise<T> {
    this.#alive()
    const vm = await this.#core.vms.get(this.uuid)
    this.#alive()
    const ended = this.#ended.signal
    return operation.run(vm, this.#call(cancelled === undefined ? ended : AbortSignal.any([ended, cancelled])))
  }

  #call(signal: AbortSignal): OperationCall {
    const party = { owner: this.delegate, session: this.session }
    return { signal, pace: new TurnPace(this.#core.turns, party, signal) }
  }

  #alive(): void {
    if (this.#ended.signal.aborted) throw this.#ended.signal.reason
  }

  #refused(action: string, right: Right, error: unknown): unknown {
    // An operation that was cut off by the end of the lease fails for that reason and no other.
    const told = this.#ended.signal.aborted ? this.#ended.signal.reason : error
    if (CloudAppError.is(told)) void this.#core.recorder.refused(this, action, right, told)
    return told
  }

  #armExpiry(): void {
    const left = this.token.grant.expires - this.#core.clock.now()
    this.#timer = setTimeout(
      () => {
        if (this.#core.clock.now() < this.token.grant.expires) return this.#armExpiry()
        const at = new Date(this.token.grant.expires).toISOString()
        const reason = new CloudAppError('ERR_CLOUDAPP_EXPIRED', `The capability expired at ${at}`, {
          vm: this.vmName,
          details: { expires: at },
        })
        this.#core.end(this, reason)
      },
      Math.min(Math.max(left, 1), LONGEST_TIMER),
    )
    this.#timer.unref()
  }
}

async function infoOf(vm: GuestVm, { signal }: OperationCall): Promise<VmInfo> {
  const own = (vm as GuestVm & { info?(): Promise<VmInfo> }).info
  if (own !== undefined) return own.call(vm)
  const vcpus = (await vm.vcpus?.registers({ signal }))?.length ?? 0
  return { state: 'running', memoryBytes: vm.memory?.end ?? 0n, vcpus }
}

export function unsupported(part: string, vm: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', `The source of ${vm} has no ${part}`, { vm })
}
