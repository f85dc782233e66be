import { CloudAppError } from '../../errors.js'
import type { PauseScope } from '../guest.js'
import type { PauseState } from '../local.js'
import { ResumeGuard } from './qemu-guard.js'
import { vmStatus } from './qemu-status.js'
import type { QmpClient } from './qmp.js'

/**
 * Stops and continues a QEMU VM for scopes that nest and overlap: the first one stops it, the last one lets it run. A VM
 * somebody else had paused is left paused. If this process dies while it holds the VM, a guard lets it run on.
 */
export class QemuPause implements PauseState {
  readonly #qmp: QmpClient
  readonly #unhear: () => void
  #running: boolean
  #generation = 0
  #holds = 0
  /** True while the VM stands still because of us. */
  #stopped = false
  #guard: ResumeGuard | undefined
  #queue: Promise<unknown> = Promise.resolve()
  #closed = false

  private constructor(qmp: QmpClient, running: boolean, unhear: () => void) {
    this.#qmp = qmp
    this.#running = running
    this.#unhear = unhear
  }

  static async open(qmp: QmpClient): Promise<QemuPause> {
    const heard: string[] = []
    let hear = (event: string): void => {
      heard.push(event)
    }
    const unhear = qmp.onEvent(({ event }) => hear(event))
    const pause = new QemuPause(qmp, (await vmStatus(qmp)).running, unhear)
    hear = (event) => pause.#hear(event)
    for (const event of heard) pause.#hear(event)
    return pause
  }

  /** What QEMU has said last; another client's `cont` is known when its event arrives. */
  paused(): boolean {
    return !this.#running
  }

  generation(): number {
    return this.#generation
  }

  /** Number of open scopes. */
  get holds(): number {
    return this.#holds
  }

  /** @throws CloudAppError ERR_CLOUDAPP_CLOSED, or what the guard and QEMU report; then nothing is held. */
  hold(): Promise<PauseScope> {
    return this.#inTurn(async () => {
      if (this.#closed) throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The source of this VM is closed')
      if (this.#holds === 0) await this.#stop()
      this.#holds++
      return this.#scope()
    })
  }

  /**
   * Runs work that itself stops the VM and lets it run on, with no scope beginning or ending meanwhile; makes sure that a
   * VM that ran runs again.
   */
  whileNobodyStops<T>(work: () => Promise<T>): Promise<T> {
    return this.#inTurn(async () => {
      const { running } = await vmStatus(this.#qmp)
      try {
        return await work()
      } finally {
        if (running && !this.#qmp.closed.aborted && !(await vmStatus(this.#qmp)).running)
          await this.#qmp.execute('cont')
      }
    })
  }

  /** Lets the VM run on if it stands still because of us; open scopes are void. Idempotent. */
  async close(): Promise<void> {
    await this.#inTurn(async () => {
      if (this.#closed) return
      this.#closed = true
      this.#holds = 0
      try {
        await this.#continue()
      } finally {
        this.#unhear()
        // Still armed if QEMU did not answer: then the guard tries, when our connection has gone.
        this.#guard?.close()
      }
    })
  }

  #scope(): PauseScope {
    let open = true
    const close = async (): Promise<void> => {
      if (!open) return
      open = false
      await this.#inTurn(async () => {
        if (this.#closed) return
        this.#holds--
        if (this.#holds === 0) await this.#continue()
      })
    }
    return { close, [Symbol.asyncDispose]: close }
  }

  async #stop(): Promise<void> {
    if (!(await vmStatus(this.#qmp)).running) return
    this.#guard ??= await ResumeGuard.start(this.#qmp.path)
    await this.#guard.arm()
    this.#stopped = true
    try {
      await this.#qmp.execute('stop')
      this.#running = false
    } catch (error) {
      // A stop whose answer is lost may still have happened.
      await this.#continue()
      throw error
    }
  }

  async #continue(): Promise<void> {
    if (!this.#stopped || this.#qmp.closed.aborted) return
    await this.#qmp.execute('cont')
    this.#stopped = false
    this.#hear('RESUME')
    await this.#guard?.disarm()
  }

  #hear(event: string): void {
    if (event === 'STOP') {
      this.#running = false
    } else if (event === 'RESUME') {
      this.#running = true
      this.#generation++
    }
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#queue.then(work)
    this.#queue = turn.catch(() => {})
    return turn
  }
}
