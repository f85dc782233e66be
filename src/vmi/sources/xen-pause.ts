import { CloudAppError } from '../../errors.js'
import type { PauseScope } from '../guest.js'
import type { PauseState } from '../local.js'
import { type AgentProcess, FRAME } from './agent-process.js'
import type { XenAgent } from './xen-agent.js'

/**
 * Pauses a domain for scopes that nest and overlap, with one pause of Xen's for all of them: a domain that somebody else
 * has paused stays so after the last scope. It is known to stand still only while a scope is open.
 */
export class XenPause implements PauseState {
  readonly #agent: XenAgent
  #generation = 0
  #holds = 0
  /** The run of the agent that holds the domain paused. */
  #holder: AgentProcess | undefined
  #queue: Promise<unknown> = Promise.resolve()
  #closed = false

  constructor(agent: XenAgent) {
    this.#agent = agent
  }

  paused(): boolean {
    return this.#holder?.alive === true
  }

  generation(): number {
    return this.#generation
  }

  /** @throws CloudAppError ERR_CLOUDAPP_CLOSED, or what the agent and Xen report; then nothing is held. */
  hold(): Promise<PauseScope> {
    return this.#inTurn(async () => {
      if (this.#closed) throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The source of this VM is closed')
      if (this.#holds === 0) {
        this.#holder = await this.#agent.pause()
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
      await this.#continue()
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
    const holder = this.#holder
    if (holder === undefined) return
    this.#holder = undefined
    this.#generation++
    // An agent that has gone holds nothing any more: it let the domain go on, or its recovery did.
    if (holder.alive) await holder.request(FRAME.unpause)
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#queue.then(work)
    this.#queue = turn.catch(() => {})
    return turn
  }
}
