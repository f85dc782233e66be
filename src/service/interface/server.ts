import { type Channel, quotaGroup } from '../../transport/channel.js'
import { openSession, type Session } from '../../transport/session.js'
import { type Backend, ClientState } from './asker.js'
import { Root } from './session.js'

/** Sessions at once, over all peers and of one user or address: one tenant can not take the places of the others. */
const SESSIONS = 1024
const SESSIONS_OF_ONE = 256

/** What one client may send: calls of this interface are small. */
const LIMITS = {
  frameBytes: 64 * 1024,
  depth: 16,
  items: 4096,
  calls: 256,
  stubs: 8,
  running: 48,
  runningBytes: 1024 * 1024,
}

/** Serves the standard interface over channels as they come. */
export class InterfaceServer {
  readonly #backend: Backend
  readonly #sessions = new Map<Session<unknown>, string>()
  #closed = false

  constructor(backend: Backend) {
    this.#backend = backend
  }

  /** Sessions open at present. */
  get sessions(): number {
    return this.#sessions.size
  }

  /** Takes a channel, which then belongs to the server. */
  serve(channel: Channel): void {
    const owner = quotaGroup(channel.peer)
    let ofOne = 0
    for (const other of this.#sessions.values()) if (other === owner) ofOne++
    if (this.#closed || this.#sessions.size >= SESSIONS || ofOne >= SESSIONS_OF_ONE) {
      void channel.close()
      return
    }
    const state = new ClientState(this.#backend, channel)
    const session = openSession<never>(channel, { main: new Root(state), limits: LIMITS }) as Session<unknown>
    this.#sessions.set(session, owner)
    const end = () => {
      this.#sessions.delete(session)
      state.end()
    }
    if (session.closed.aborted) end()
    else session.closed.addEventListener('abort', end, { once: true })
  }

  /** Ends the sessions there are; new ones are taken. */
  async drop(): Promise<void> {
    await Promise.all([...this.#sessions.keys()].map((session) => session.close()))
  }

  /** Ends every session. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true
    await this.drop()
  }
}
