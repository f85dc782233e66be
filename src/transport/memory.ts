import { randomBytes } from 'node:crypto'
import { CloudAppError } from '../errors.js'
import type { Channel, PeerIdentity } from './channel.js'

/** Bytes in flight in one direction before `write` answers false. */
const HIGH_WATER = 64 * 1024

/** How long {@link Channel.close} waits for a peer that does not read, in ms. */
const LINGER = 1000

/** One direction of a pair: what one end wrote and the other has not read. */
class Pipe {
  readonly #chunks: Uint8Array[] = []
  #reader: ((chunk: Uint8Array | undefined) => void) | undefined
  #waiting: (() => void)[] = []
  #onEmpty: (() => void) | undefined
  #ended = false
  queued = 0

  write(bytes: Uint8Array): boolean {
    if (this.#ended || bytes.length === 0) return true
    const reader = this.#reader
    if (reader !== undefined) {
      this.#reader = undefined
      reader(bytes)
      return true
    }
    this.#chunks.push(bytes)
    this.queued += bytes.length
    return this.queued < HIGH_WATER
  }

  read(): Promise<Uint8Array | undefined> {
    const chunk = this.#chunks.shift()
    if (chunk !== undefined) {
      this.queued -= chunk.length
      if (this.queued < HIGH_WATER) this.#wake()
      if (this.queued === 0) this.#onEmpty?.()
      return Promise.resolve(chunk)
    }
    if (this.#ended) return Promise.resolve(undefined)
    return new Promise((resolve) => {
      this.#reader = resolve
    })
  }

  drained(): Promise<void> {
    if (this.#ended || this.queued < HIGH_WATER) return Promise.resolve()
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  /** Resolves when everything written has been read, the reader is gone, or after {@link LINGER}. */
  empty(): Promise<void> {
    if (this.queued === 0 || this.#ended) return Promise.resolve()
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, LINGER)
      this.#onEmpty = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  end(): void {
    this.#ended = true
    this.#reader?.(undefined)
    this.#reader = undefined
    this.#onEmpty?.()
    this.#wake()
  }

  #wake(): void {
    const waiting = this.#waiting
    this.#waiting = []
    for (const resolve of waiting) resolve()
  }
}

class MemoryChannel implements Channel {
  readonly #closed = new AbortController()
  readonly #in: Pipe
  readonly #out: Pipe
  #failReader: ((error: CloudAppError) => void) | undefined
  #closing: Promise<void> | undefined

  constructor(
    readonly peer: PeerIdentity,
    readonly binding: Uint8Array,
    incoming: Pipe,
    outgoing: Pipe,
  ) {
    this.#in = incoming
    this.#out = outgoing
  }

  get closed(): AbortSignal {
    return this.#closed.signal
  }

  get queued(): number {
    return this.#out.queued
  }

  read(): Promise<Uint8Array | undefined> {
    if (this.#closed.signal.aborted) return Promise.reject(this.#closed.signal.reason)
    if (this.#failReader !== undefined) {
      return Promise.reject(new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'Channel: one read at a time'))
    }
    return new Promise<Uint8Array | undefined>((resolve, reject) => {
      this.#failReader = reject
      this.#in.read().then(resolve, reject)
    }).finally(() => {
      this.#failReader = undefined
    })
  }

  write(bytes: Uint8Array): boolean {
    if (this.#closing !== undefined) return true
    return this.#out.write(bytes)
  }

  drained(): Promise<void> {
    return this.#out.drained()
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    const reason = new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The channel is closed')
    this.#failReader?.(reason)
    this.#closed.abort(reason)
    await this.#out.empty()
    this.#out.end()
    this.#in.end()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/**
 * Two channels joined inside this process: what one writes the other reads. The binding is 32 random bytes both hold.
 */
export function memoryChannelPair(names: readonly [string, string] = ['a', 'b']): [Channel, Channel] {
  const binding = new Uint8Array(randomBytes(32))
  const forth = new Pipe()
  const back = new Pipe()
  return [
    new MemoryChannel({ kind: 'memory', name: names[1] }, binding, back, forth),
    new MemoryChannel({ kind: 'memory', name: names[0] }, binding, forth, back),
  ]
}
