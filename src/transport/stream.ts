import { CloudAppError } from '../errors.js'
import type { Channel, PeerIdentity } from './channel.js'
import { type Deferred, deferred } from './deferred.js'
import { Gather } from './gather.js'
import { OutQueue } from './out-queue.js'

/** Bytes one side may send on a stream before the other has read any: docs/interface.md, "Streams". */
export const WINDOW = 256 * 1024

/** Queued here before `write` answers false. */
const HIGH_WATER = 64 * 1024

/** What a stream needs of the link it is in. */
export interface StreamLink {
  /** There is something to send, or to give back. */
  ready(stream: Stream): void
  /** It has ended at this side. */
  ended(stream: Stream): void
}

/** One of the streams of a {@link Link}: a channel like any other. */
export class Stream implements Channel {
  readonly #link: StreamLink
  readonly #closed = new AbortController()
  /** What came and was not read. */
  readonly #in: Uint8Array[] = []
  readonly #gather = new Gather()
  readonly #out = new OutQueue(HIGH_WATER)
  #reader: Deferred<Uint8Array | undefined> | undefined
  /** What the peer may still send, and what it has sent that was read since it was last told so. */
  #window = WINDOW
  #consumed = 0
  /** What may still be sent to the peer. */
  #credit = WINDOW
  /** The peer sends nothing any more, and takes nothing. */
  peerEnded = false
  #closing: Promise<void> | undefined

  constructor(
    link: StreamLink,
    /** The stream's number in its link. */
    readonly id: number,
    readonly peer: PeerIdentity,
    readonly binding: Uint8Array,
  ) {
    this.#link = link
  }

  get closed(): AbortSignal {
    return this.#closed.signal
  }

  get queued(): number {
    return this.#out.bytes
  }

  async read(): Promise<Uint8Array | undefined> {
    if (this.#reader !== undefined) {
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'Channel: one read at a time')
    }
    if (this.#closing !== undefined) throw closedHere()
    const chunk = this.#in.shift()
    if (chunk !== undefined) {
      this.#consume(chunk.length)
      return chunk
    }
    if (this.peerEnded) return undefined
    if (this.closed.aborted) throw this.closed.reason
    this.#reader = deferred()
    return this.#reader.promise
  }

  write(bytes: Uint8Array): boolean {
    if (this.#closing !== undefined || this.peerEnded || this.closed.aborted) return true
    const room = this.#out.push(bytes)
    if (this.#credit > 0) this.#link.ready(this)
    return room
  }

  drained(): Promise<void> {
    return this.#out.drained()
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(): Promise<void> {
    this.#reader?.reject(closedHere())
    this.#reader = undefined
    await this.#out.flushed()
    this.end(closedHere())
  }

  /** Ends it at this side, of which the link tells the peer. What came before can still be read. */
  end(reason: CloudAppError): void {
    if (this.closed.aborted) return
    this.#closed.abort(reason)
    this.#out.clear()
    this.#reader?.reject(reason)
    this.#reader = undefined
    this.#link.ended(this)
  }

  // What follows is for the link.

  /** Takes what came. False if it is more than the peer may send. */
  receive(piece: Uint8Array): boolean {
    if (piece.length > this.#window || this.peerEnded) return false
    this.#window -= piece.length
    this.#gather.add(this.#in, piece)
    const reader = this.#reader
    if (reader === undefined) return true
    this.#reader = undefined
    const chunk = this.#in.shift() as Uint8Array
    this.#consume(chunk.length)
    reader.resolve(chunk)
    return true
  }

  /** The peer read so many bytes. False if that is more than was sent to it. */
  credit(bytes: number): boolean {
    if (bytes > WINDOW - this.#credit) return false
    this.#credit += bytes
    if (this.#out.bytes > 0) this.#link.ready(this)
    return true
  }

  peerEnds(): void {
    this.peerEnded = true
    this.#out.clear()
    if (this.#in.length === 0) this.#finish()
  }

  /** Copies what may be sent now into a frame, and returns how much that is. It counts as sent. */
  take(into: Uint8Array): number {
    const most = Math.min(into.length, this.#credit)
    let count = 0
    while (count < most) {
      const piece = this.#out.next()?.subarray(0, most - count)
      if (piece === undefined) break
      into.set(piece, count)
      count += piece.length
      this.#out.taken(piece.length)
    }
    this.#credit -= count
    return count
  }

  /** How much a call of {@link take} would give at most. */
  get sendable(): number {
    return Math.min(this.#out.bytes, this.#credit)
  }

  /** Bytes read here that the peer is to be told of now; 0 if it can wait. */
  takeCredit(): number {
    if (this.#consumed < WINDOW / 2 || this.peerEnded) return 0
    const bytes = this.#consumed
    this.#consumed = 0
    this.#window += bytes
    return bytes
  }

  #consume(bytes: number): void {
    this.#consumed += bytes
    if (this.#consumed >= WINDOW / 2) this.#link.ready(this)
    if (this.peerEnded && this.#in.length === 0) this.#finish()
  }

  #finish(): void {
    this.#reader?.resolve(undefined)
    this.#reader = undefined
    this.end(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The peer closed the stream'))
  }
}

function closedHere(): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The channel is closed')
}
