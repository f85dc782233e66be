import { CloudAppError } from '../../errors.js'
import type { Shim } from '../../native/abi.js'
import { checked } from '../../native/shim.js'
import type { Channel, PeerIdentity } from '../channel.js'
import { deferred } from '../deferred.js'
import { OutQueue } from '../out-queue.js'
import { pollDevice, type StopPolling } from './poll.js'

/** The least that may be queued here, beside what the ring holds, before `write` answers false. */
const HIGH_WATER = 256 * 1024

/** What it costs to sleep and be woken, where nobody measured it, in us: see wake-cost.ts. */
const WAKE_US = 20

/** The largest piece one read gives. */
const MOST_READ = 256 * 1024

/**
 * How often all vchans of this process cross into the native library before the event loop turns, and for how many times what
 * sleeping costs they look at their rings meanwhile: a peer that is always at work, or always just about to be, would keep
 * the event loop from everybody else.
 */
const CROSSINGS = 64
const LOOKS = 16
/** What is spent of that; 1 is all. */
let spent = 0

function spend(part: number): void {
  if (spent === 0) {
    setImmediate(() => {
      spent = 0
    })
  }
  spent += part
}

// enum ca_vchan_flags and ca_vchan_peer, cloudapp_vchan.h.
const EVENT = 1
const LIVE = 1
const AWAITED = 2

const NOTHING = new Uint8Array(1)

/** What the native library says of an end it made: CA_VCHAN_INFO_WORDS. */
export interface VchanInfo {
  readonly fd: number
  readonly readSize: number
  readonly writeSize: number
  readonly ref: number
  readonly port: number
}

export function vchanInfo(words: Uint32Array): VchanInfo {
  const [fd = 0, readSize = 0, writeSize = 0, ref = 0, port = 0] = words
  return { fd, readSize, writeSize, ref, port }
}

/** One end of a vchan as a {@link Channel}. It owns the native handle. */
export class VchanChannel implements Channel {
  /** Resolves when the peer has come; rejects if this end is closed before. */
  readonly connected: Promise<void>
  readonly #shim: Shim
  readonly #handle: number
  readonly #stop: StopPolling
  readonly #closed = new AbortController()
  readonly #connected = deferred<void>()
  readonly #queue: OutQueue
  readonly #status = new Uint32Array(8)
  readonly #statusBytes = new Uint8Array(this.#status.buffer)
  readonly #wakeUs: number
  readonly #readSize: number
  #buffer: Uint8Array | undefined
  #reader: { resolve(chunk: Uint8Array | undefined): void; reject(error: unknown): void } | undefined
  #peerState = AWAITED
  #flushing = false
  #later = false
  #ended = false
  #closing: Promise<void> | undefined
  /** Why a closed channel is closed, once nothing is left to read. */
  #failure: CloudAppError | undefined

  constructor(
    shim: Shim,
    handle: number,
    info: VchanInfo,
    readonly peer: PeerIdentity,
    readonly binding: Uint8Array,
    wakeUs = WAKE_US,
  ) {
    this.#shim = shim
    this.#handle = handle
    this.#wakeUs = wakeUs
    // More than the ring holds: a peer that fills it goes on while it is emptied.
    this.#readSize = Math.min(4 * info.readSize, MOST_READ)
    this.#queue = new OutQueue(Math.max(HIGH_WATER, 2 * info.writeSize))
    this.connected = this.#connected.promise
    this.connected.catch(() => {})
    this.#stop = pollDevice(
      shim,
      info.fd,
      new Uint8Array(64),
      () => this.#turn(EVENT),
      (cause) => this.fail(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The vchan can not be waited for', { cause })),
    )
    // A peer may be there already; and it wakes nobody who has not looked.
    this.#turn(0)
  }

  get closed(): AbortSignal {
    return this.#closed.signal
  }

  get queued(): number {
    return this.#queue.bytes
  }

  read(): Promise<Uint8Array | undefined> {
    if (this.#reader !== undefined) {
      return Promise.reject(new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'Channel: one read at a time'))
    }
    if (this.#closing !== undefined) return Promise.reject(closedHere())
    if (this.#ended) return Promise.resolve(undefined)
    if (this.#failure !== undefined) return Promise.reject(this.#failure)
    return new Promise((resolve, reject) => {
      this.#reader = { resolve, reject }
      this.#turn(0)
    })
  }

  write(bytes: Uint8Array): boolean {
    if (this.#closing !== undefined || this.#closed.signal.aborted) return true
    const room = this.#queue.push(bytes)
    // What is written in one turn of the event loop crosses into the native library together.
    if (!this.#flushing) {
      this.#flushing = true
      process.nextTick(() => {
        this.#flushing = false
        if (this.#queue.bytes > 0) this.#turn(0)
      })
    }
    return room
  }

  drained(): Promise<void> {
    return this.#queue.drained()
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** Ends the channel for a reason from outside: the peer's domain has gone. What was read from it is lost. */
  fail(reason: CloudAppError): void {
    if (this.#closed.signal.aborted) return
    this.#failure = reason
    this.#finish(reason)
  }

  async #close(): Promise<void> {
    this.#reader?.reject(closedHere())
    this.#reader = undefined
    if (this.#closed.signal.aborted) return
    this.#turn(0)
    await this.#queue.flushed()
    this.#finish(closedHere())
  }

  /**
   * Moves what can be moved both ways in one crossing, and once more while there is more to write than one piece. Nothing is
   * taken out of the ring that nobody has asked for: that holds the peer back.
   */
  #turn(flags: number): void {
    if (this.#closed.signal.aborted) return
    for (let event = flags; ; event = 0) {
      if (spent >= 1 && event !== EVENT) {
        this.#turnLater()
        return
      }
      const reads = this.#reader !== undefined
      if (reads) this.#buffer ??= unfilled(this.#readSize)
      const into = reads ? (this.#buffer as Uint8Array) : NOTHING
      const out = this.#peerState === AWAITED ? undefined : this.#queue.next()
      const result = this.#shim.ca_vchan_turn(
        this.#handle,
        event,
        this.#wakeUs,
        out ?? NOTHING,
        out?.length ?? 0,
        into,
        reads ? into.length : 0,
        this.#statusBytes,
      )
      if (result < 0) {
        this.#broken(result)
        return
      }
      const [put = 0, taken = 0, peer = 0, ready = 0, , looked = 0] = this.#status
      spend(1 / CROSSINGS + looked / (LOOKS * this.#wakeUs))
      if (put > 0) this.#queue.taken(put)
      if (taken > 0) this.#give(into, taken)
      if (this.#sawPeer(peer, ready)) return
      // All of a piece was taken and another waits, or the peer has just come.
      const more = this.#queue.bytes > 0 && (out === undefined ? this.#peerState === LIVE : put === out.length)
      if (!more) return
    }
  }

  #turnLater(): void {
    if (this.#later) return
    this.#later = true
    setImmediate(() => {
      this.#later = false
      this.#turn(0)
    })
  }

  #give(buffer: Uint8Array, count: number): void {
    const reader = this.#reader
    this.#reader = undefined
    // What fills a fourth of its buffer is given away with it, and the next read gets another: more would be held than was read.
    const small = count < buffer.length / 4
    if (!small) this.#buffer = undefined
    reader?.resolve(small ? buffer.slice(0, count) : buffer.subarray(0, count))
  }

  /** True if the channel has ended by it. */
  #sawPeer(peer: number, ready: number): boolean {
    if (peer === LIVE && this.#peerState === AWAITED) this.#connected.resolve()
    this.#peerState = peer
    if (peer === LIVE || peer === AWAITED) return false
    // It takes no more, but what it wrote before it went is still to be read.
    this.#queue.clear()
    if (ready > 0) return true
    this.#ended = true
    this.#reader?.resolve(undefined)
    this.#reader = undefined
    if (this.#closing === undefined) this.#finish(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The peer closed the vchan'))
    return true
  }

  #broken(result: number): void {
    try {
      checked(this.#shim, result)
    } catch (error) {
      this.fail(error as CloudAppError)
    }
  }

  #finish(reason: CloudAppError): void {
    if (this.#closed.signal.aborted) return
    this.#stop()
    // Errors here have no reader: the handle is ours and open.
    this.#shim.ca_vchan_close(this.#handle)
    this.#closed.abort(reason)
    this.#connected.reject(reason)
    this.#queue.clear()
    this.#reader?.reject(reason)
    this.#reader = undefined
  }
}

/** Memory that is written before it is read: filling it with zeros would take as long as filling it from the ring. */
function unfilled(bytes: number): Uint8Array {
  return new Uint8Array(Buffer.allocUnsafeSlow(bytes).buffer)
}

function closedHere(): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The channel is closed')
}
