import { CloudAppError } from '../errors.js'

/**
 * What a receiver lets a peer do with capnweb. Everything is counted on this side; the peer is never asked.
 */
export interface GuardLimits {
  /** Calls the peer has made and not let go of. Past it the session ends. 1,024 by default. */
  readonly calls: number
  /** Steps of one property path. 8 by default. */
  readonly path: number
  /** Stubs and promises one message may bring along. 64 by default, where stubs are allowed. */
  readonly stubs: number
}

export const GUARD_LIMITS: GuardLimits = { calls: 1024, path: 8, stubs: 64 }

const NAME = 64
/** Answers given up that are still reckoned with. */
const LATE = 1024

/**
 * Watches the messages of one capnweb session (its wire is described in protocol.md of capnweb 0.12) and refuses what
 * the interfaces here have no use for: `remap` (one message would make 100,000 calls), calls hidden in arguments, fetch's
 * Request, Response and Blob, and, unless allowed, stubs and streams from the peer.
 */
export class Guard {
  limits: GuardLimits
  readonly #allowStubs: boolean
  readonly #allowStreams: boolean
  /** Calls of the peer it has not released, with the bytes their messages had. */
  readonly #live = new Map<number, number>()
  /** Those of them whose answer was asked for and not sent. */
  readonly #running = new Map<number, number>()
  /** Those of them whose answer was not asked for yet. */
  readonly #unasked = new Set<number>()
  /** Called when the peer has asked for an answer, or let go of one. */
  onChange: (released: number | undefined) => void = () => {}
  readonly #awaited = new Set<number>()
  /** Answers this side asked for and then gave up: each may still come, once. */
  readonly #late = new Set<number>()
  #received = 0
  #sent = 0
  runningBytes = 0

  constructor(limits: GuardLimits, allowStubs: boolean, allowStreams: boolean) {
    this.limits = limits
    this.#allowStubs = allowStubs
    this.#allowStreams = allowStreams
  }

  /** Calls that run: asked for, not yet answered, not given up. */
  get running(): number {
    return this.#running.size
  }

  /** Calls whose answers are kept until they are asked for. */
  get unasked(): number {
    return this.#unasked.size
  }

  /** Calls the peer still holds. */
  get live(): number {
    return this.#live.size
  }

  /** Answers this side waits for: while there are any, it must go on reading. */
  get awaited(): number {
    return this.#awaited.size
  }

  /** Notes a message on its way out. */
  outgoing(message: readonly unknown[]): void {
    switch (message[0]) {
      case 'push':
      case 'stream':
      case 'pipe':
        this.#sent++
        if (message[0] === 'stream') this.#awaited.add(this.#sent)
        break
      case 'pull':
        this.#awaited.add(message[1] as number)
        break
      case 'release':
        if (this.#awaited.delete(message[1] as number)) this.#giveUp(message[1] as number)
        break
      case 'resolve':
      case 'reject':
        this.#finish(message[1] as number)
    }
  }

  /**
   * Checks a message that came in.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_PROTOCOL`: the session must end.
   */
  incoming(message: unknown, size: number): void {
    if (!Array.isArray(message)) throw broken('a message is no array')
    switch (message[0]) {
      case 'push':
        arity(message, 2)
        this.#call(message[1], size)
        this.#unasked.add(this.#received)
        return
      case 'stream':
        if (!this.#allowStreams) throw broken('a stream, which is not allowed here')
        arity(message, 2)
        this.#call(message[1], size)
        // Answered without being asked, and let go of with the answer.
        this.#live.delete(this.#received)
        this.#running.set(this.#received, size)
        this.runningBytes += size
        return
      case 'pipe':
        if (!this.#allowStreams) throw broken('a stream, which is not allowed here')
        arity(message, 1)
        this.#open(size)
        return
      case 'pull': {
        arity(message, 2)
        const id = identifier(message[1])
        this.#unasked.delete(id)
        this.onChange(undefined)
        const bytes = this.#live.get(id)
        if (bytes !== undefined && !this.#running.has(id)) {
          this.#running.set(id, bytes)
          this.runningBytes += bytes
        }
        return
      }
      case 'resolve':
      case 'reject': {
        arity(message, 3)
        const id = identifier(message[1])
        // capnweb takes in an answer to no call, and lets go of it; a promise in it then rejects where nobody listens, and
        // that ends the process. So an answer is to a call that waits, or to one let go of whose answer was on its way.
        if (!this.#awaited.delete(id) && !this.#late.delete(id)) throw broken('an answer to no call')
        // What the peer answers may bring stubs: that is how it hands out capabilities.
        this.#expression(message[2], { stubs: 0, allow: true, answer: true }, 0)
        return
      }
      case 'release': {
        arity(message, 3)
        const id = identifier(message[1])
        const count = message[2]
        if (!Number.isSafeInteger(count) || (count as number) < 1 || id === 0) throw broken('a wrong release')
        this.#live.delete(id)
        this.#unasked.delete(id)
        this.onChange(id)
        this.#finish(id)
        return
      }
      case 'abort':
        arity(message, 2)
        this.#expression(message[1], { stubs: 0, allow: false }, 0)
        return
      default:
        throw broken('an unknown message')
    }
  }

  #giveUp(id: number): void {
    this.#late.add(id)
    // A peer that learns of it first sends none: what is this old does not come any more.
    const oldest = this.#late.values().next().value
    if (this.#late.size > LATE && oldest !== undefined) this.#late.delete(oldest)
  }

  #finish(id: number): void {
    const bytes = this.#running.get(id)
    if (bytes === undefined) return
    this.#running.delete(id)
    this.runningBytes -= bytes
  }

  #open(size: number): void {
    this.#received++
    if (this.#live.size >= this.limits.calls) {
      throw new CloudAppError(
        'ERR_CLOUDAPP_PROTOCOL',
        `The peer broke the wire protocol: it holds more than ${this.limits.calls} calls`,
        { details: { limit: this.limits.calls } },
      )
    }
    this.#live.set(this.#received, size)
  }

  #call(expression: unknown, size: number): void {
    if (!Array.isArray(expression)) throw broken('a call that is no expression')
    if (expression[0] === 'remap') throw broken('remap, which is not allowed here')
    if (expression[0] !== 'pipeline') throw broken('a call that is no pipeline')
    if (expression.length < 3 || expression.length > 4) throw broken('a malformed call')
    identifier(expression[1])
    this.#path(expression[2])
    if (expression.length === 4) {
      if (!Array.isArray(expression[3])) throw broken('arguments that are no array')
      const state = { stubs: 0, allow: this.#allowStubs }
      for (const argument of expression[3]) this.#expression(argument, state, 0)
    }
    this.#open(size)
  }

  #path(path: unknown): void {
    if (!Array.isArray(path)) throw broken('a path that is no array')
    if (path.length > this.limits.path) throw broken(`a path of more than ${this.limits.path} steps`)
    for (const step of path) {
      if (typeof step === 'number') continue
      if (typeof step !== 'string' || step.length > NAME) throw broken('a path step that is no name')
    }
  }

  // Depth is bounded by the frame's.
  #expression(value: unknown, state: Expected, depth: number): void {
    if (typeof value !== 'object' || value === null || value instanceof Uint8Array) return
    if (!Array.isArray(value)) {
      for (const key of Object.keys(value)) this.#expression((value as Record<string, unknown>)[key], state, depth + 1)
      return
    }
    if (value.length === 1 && Array.isArray(value[0])) {
      for (const element of value[0]) this.#expression(element, state, depth + 1)
      return
    }
    switch (value[0]) {
      case 'bytes':
        if (!(value[1] instanceof Uint8Array)) throw broken('bytes that are no bytes')
        return
      case 'bigint':
        if (typeof value[1] !== 'string' || !/^-?[0-9]{1,80}$/.test(value[1])) throw broken('a malformed bigint')
        return
      case 'undefined':
      case 'inf':
      case '-inf':
      case 'nan':
        arity(value, 1)
        return
      case 'date':
        arity(value, 2)
        return
      case 'error':
        if (typeof value[1] !== 'string' || typeof value[2] !== 'string') throw broken('a malformed error')
        if (value.length > 4) this.#expression(value[4], { stubs: 0, allow: false }, depth + 1)
        return
      case 'pipeline':
      case 'import':
        if (value.length > 3) throw broken('a call inside arguments')
        identifier(value[1])
        if (value.length === 3) this.#path(value[2])
        // In an answer it would be a thing of this side's own, which only comes back if this side gave it away.
        this.#stub(state, !state.answer || this.#allowStubs)
        return
      case 'export':
        identifier(value[1])
        this.#stub(state, state.allow)
        return
      case 'promise':
        // An answer of ours is whole when it is sent: a promise in it has no use, and could be left to break.
        identifier(value[1])
        this.#stub(state, state.allow && !state.answer)
        return
      case 'readable':
      case 'writable':
        if (!this.#allowStreams) throw broken('a stream, which is not allowed here')
        identifier(value[1])
        this.#stub(state, true)
        return
      case 'remap':
        throw broken('remap, which is not allowed here')
      default:
        throw broken('a kind of value that is not allowed here')
    }
  }

  #stub(state: { stubs: number }, allowed: boolean): void {
    if (!allowed) throw broken('a stub, which is not allowed here')
    if (++state.stubs > this.limits.stubs) throw broken(`more than ${this.limits.stubs} stubs in a message`)
  }
}

/** What one message may hold. */
interface Expected {
  stubs: number
  /** Stubs of the peer's. */
  readonly allow: boolean
  readonly answer?: true
}

function arity(message: readonly unknown[], count: number): void {
  if (message.length !== count) throw broken('a message of a wrong length')
}

function identifier(value: unknown): number {
  if (!Number.isSafeInteger(value)) throw broken('an identifier that is no integer')
  return value as number
}

function broken(what: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `The peer broke the wire protocol: ${what}`)
}
