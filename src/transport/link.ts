import { createHash } from 'node:crypto'
import { CloudAppError } from '../errors.js'
import type { Channel } from './channel.js'
import {
  FINISHING,
  frame,
  HEADER,
  Kind,
  LinkReader,
  MOST_PAYLOAD,
  type Part,
  preface,
  protocol,
  putHeader,
  TOO_MANY,
  word,
} from './link-wire.js'
import { Stream, type StreamLink } from './stream.js'

/** Streams at once in one link. */
export const MOST_STREAMS = 32

/** Words about streams that wait for a peer that does not read; what the streams carry waits in them. */
const MOST_QUEUED = 1024 * 1024

/** Frames that are taken before the event loop turns, and how many of them an opening counts for: some 0.5 ms. */
const WORK = 256
const OPENING = 32

export interface LinkOptions {
  /** Who opens streams is the client. */
  readonly role: 'client' | 'server'
  /** A server's: called for each stream, which then belongs to the callee. */
  readonly onStream?: (stream: Channel) => void
}

/**
 * Many channels inside one, for a transport of which there can be few: docs/interface.md, "Streams", has the bytes. Each has
 * a window of its own, so that one that nobody reads holds up none of the others. It owns the channel it is in.
 */
export class Link implements AsyncDisposable, StreamLink {
  readonly #channel: Channel
  readonly #role: 'client' | 'server'
  readonly #onStream: (stream: Channel) => void
  readonly #streams = new Map<number, Stream>()
  /** Those with something to say, in turn. */
  readonly #ready = new Set<Stream>()
  /** The number of the stream that was opened last. */
  #last = 0
  #pumping = false
  #finishing = false
  #ended = false
  #closing: Promise<void> | undefined

  constructor(channel: Channel, { role, onStream = (stream) => void stream.close() }: LinkOptions) {
    this.#channel = channel
    this.#role = role
    this.#onStream = onStream
    const onEnd = () => this.#end(channel.closed.reason)
    if (channel.closed.aborted) onEnd()
    else channel.closed.addEventListener('abort', onEnd, { once: true })
    channel.write(preface())
    void this.#run()
  }

  /** Fires when the channel it is in has ended. */
  get closed(): AbortSignal {
    return this.#channel.closed
  }

  /** Streams that are open. */
  get size(): number {
    return this.#streams.size
  }

  /**
   * A new stream, which the peer may still refuse: it then ends with `ERR_CLOUDAPP_LIMIT`.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_LIMIT` if too many are open; `ERR_CLOUDAPP_CLOSED`
   */
  open(): Channel {
    if (this.#ended || this.#closing !== undefined) {
      throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The link is closed', { cause: this.closed.reason })
    }
    if (this.#role === 'server') {
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'A stream is opened by the client of its link')
    }
    if (this.#streams.size >= MOST_STREAMS) throw tooMany()
    this.#last++
    this.#say(this.#last, Kind.Open)
    return this.#add(this.#last)
  }

  /** Takes no new streams; those that exist live on, and the last to end closes the link. */
  finish(): void {
    this.#finishing = true
    if (this.#streams.size === 0) void this.close()
  }

  /** Ends all streams and the channel they are in. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(): Promise<void> {
    this.#end(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The link is closed'))
    await this.#channel.close()
  }

  ready(stream: Stream): void {
    this.#ready.add(stream)
    if (this.#pumping) return
    this.#pumping = true
    // What is written in one turn of the event loop goes into one frame.
    process.nextTick(() => void this.#pump())
  }

  ended(stream: Stream): void {
    this.#ready.delete(stream)
    if (this.#streams.delete(stream.id) && !stream.peerEnded) this.#say(stream.id, Kind.End)
    if (this.#finishing && this.#streams.size === 0) void this.close()
  }

  #add(id: number): Stream {
    const hash = createHash('sha256')
      .update('cloudapp stream binding v1\0')
      .update(this.#channel.binding)
      .update(word(id))
    const stream = new Stream(this, id, this.#channel.peer, new Uint8Array(hash.digest()))
    this.#streams.set(id, stream)
    return stream
  }

  #say(id: number, kind: Kind, payload?: Uint8Array): void {
    if (this.#ended) return
    this.#channel.write(frame(id, kind, payload))
    if (this.#channel.queued <= MOST_QUEUED) return
    this.#end(new CloudAppError('ERR_CLOUDAPP_LIMIT', "The peer's link does not read what it is told"))
    void this.close()
  }

  async #pump(): Promise<void> {
    for (const stream of this.#ready) {
      if (this.#ended) break
      // To the end of the line, if it has more.
      this.#ready.delete(stream)
      const read = stream.takeCredit()
      if (read > 0) this.#say(stream.id, Kind.Credit, word(read))
      if (stream.sendable === 0) continue
      const bytes = new Uint8Array(HEADER + Math.min(stream.sendable, MOST_PAYLOAD))
      putHeader(bytes, stream.id, Kind.Data)
      stream.take(bytes.subarray(HEADER))
      if (stream.sendable > 0) this.#ready.add(stream)
      if (!this.#channel.write(bytes)) await this.#channel.drained()
    }
    this.#pumping = false
  }

  async #run(): Promise<void> {
    const reader = new LinkReader()
    let work = 0
    try {
      for (let chunk = await this.#channel.read(); chunk !== undefined; chunk = await this.#channel.read()) {
        for (const part of reader.push(chunk)) {
          this.#take(part)
          work += part.kind === Kind.Open ? OPENING : 1
          if (work < WORK) continue
          work = 0
          await new Promise(setImmediate)
        }
        if (this.#ended) break
      }
    } catch (error) {
      this.#end(error as CloudAppError)
    }
    await this.close()
  }

  #take({ id, kind, payload }: Part): void {
    if (kind === Kind.Open) {
      this.#opened(id)
      return
    }
    if (id > this.#last) throw protocol(`speaks of stream ${id}, which was not opened`)
    const stream = this.#streams.get(id)
    // It was ended here, and the peer had not heard of it.
    if (stream === undefined) return
    if (kind === Kind.End) stream.peerEnds()
    else if (kind === Kind.Refuse) this.#refused(stream, payload[0])
    else if (kind === Kind.Data) {
      if (!stream.receive(payload)) throw protocol(`sent more on stream ${id} than it may`)
    } else if (!stream.credit(new DataView(payload.buffer, payload.byteOffset).getUint32(0, true))) {
      throw protocol(`gives back more on stream ${id} than it had`)
    }
  }

  #opened(id: number): void {
    if (this.#role === 'client' || id <= this.#last) throw protocol(`opens stream ${id}, which it can not`)
    this.#last = id
    const why = this.#finishing ? FINISHING : this.#streams.size >= MOST_STREAMS ? TOO_MANY : undefined
    if (why === undefined) this.#onStream(this.#add(id))
    else this.#say(id, Kind.Refuse, new Uint8Array([why]))
  }

  #refused(stream: Stream, why: number | undefined): void {
    if (this.#role === 'server') throw protocol(`refuses stream ${stream.id}, which it opened`)
    this.#streams.delete(stream.id)
    stream.end(
      why === TOO_MANY ? tooMany() : new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The service takes no new streams'),
    )
  }

  #end(reason: CloudAppError): void {
    if (this.#ended) return
    this.#ended = true
    for (const stream of this.#streams.values()) stream.end(reason)
    this.#ready.clear()
  }
}

function tooMany(): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_LIMIT', `More than ${MOST_STREAMS} streams to one service are open`, {
    details: { limit: 'streams', most: MOST_STREAMS },
  })
}
