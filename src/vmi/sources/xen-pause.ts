import { CloudAppError } from '../../errors.js'
import type { Shim } from '../../native/abi.js'
import { checked } from '../../native/shim.js'
import type { PauseScope } from '../guest.js'
import type { PauseState } from '../local.js'
import { XenPauseGuard } from './xen-guard.js'

/**
 * Pauses a domain for scopes that nest and overlap, with one pause of Xen's for all of them: a domain that somebody else
 * has paused stays so after the last scope. It is known to stand still only while a scope is open.
 */
export class XenPause implements PauseState {
  readonly #shim: Shim
  readonly #domid: number
  #generation = 0
  #holds = 0
  #paused = false
  #guard: XenPauseGuard | undefined
  #queue: Promise<unknown> = Promise.resolve()
  #closed = false

  constructor(shim: Shim, domid: number) {
    this.#shim = shim
    this.#domid = domid
  }

  paused(): boolean {
    return this.#paused
  }

  generation(): number {
    return this.#generation
  }

  /** @throws CloudAppError ERR_CLOUDAPP_CLOSED, or what the guard and Xen report; then nothing is held. */
  hold(): Promise<PauseScope> {
    return this.#inTurn(async () => {
      if (this.#closed) throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The source of this VM is closed')
      if (this.#holds === 0) {
        if (this.#guard?.alive !== true) this.#guard = await XenPauseGuard.start(this.#domid)
        await this.#guard.pause()
        this.#paused = true
      }
      this.#holds++
      return this.#scope()
    })
  }

  /** Lets the domain run on as far as it stands still because of us; open scopes are void. Idempotent. */
  async close(): Promise<void> {
    await this.#inTurn(async () => {
      if (this.#closed) return
      this.#closed = true
      this.#holds = 0
      try {
        await this.#continue()
      } finally {
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

  async #continue(): Promise<void> {
    if (!this.#paused) return
    this.#paused = false
    this.#generation++
    if (this.#guard?.alive === true) await this.#guard.unpause()
    else checked(this.#shim, this.#shim.ca_xen_unpause(this.#domid))
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#queue.then(work)
    this.#queue = turn.catch(() => {})
    return turn
  }
}
