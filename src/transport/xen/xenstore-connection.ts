import { CloudAppError } from '../../errors.js'
import { type Deferred, deferred } from '../deferred.js'
import { openStoreLink, type StoreLink } from './xenstore-link.js'
import {
  encodeMessage,
  MessageReader,
  PAYLOAD_MAX,
  type StoreMessage,
  splitStrings,
  storeError,
  XS,
} from './xenstore-wire.js'

/** Requests without an answer yet; more are refused. */
const IN_FLIGHT = 256

interface Waiting extends Deferred<Uint8Array> {
  readonly type: number
  readonly what: string
}

/** Requests and answers of xenstore, matched; and the watch events in between. */
export class StoreConnection {
  readonly #closed = new AbortController()
  readonly #waiting = new Map<number, Waiting>()
  readonly #watches = new Map<string, (path: string) => void>()
  readonly #reader = new MessageReader()
  #link!: StoreLink
  #serial = 0

  static async open(path: string | undefined): Promise<StoreConnection> {
    const connection = new StoreConnection()
    connection.#link = await openStoreLink(path, {
      onBytes: (bytes) => connection.#take(bytes),
      onEnd: (cause) =>
        connection.#end(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'xenstore closed the connection', { cause })),
    })
    return connection
  }

  get closed(): AbortSignal {
    return this.#closed.signal
  }

  /** @param what for the error's text. */
  request(type: number, body: Uint8Array, transaction: number, what: string): Promise<Uint8Array> {
    if (this.closed.aborted) return Promise.reject(this.closed.reason)
    if (body.length > PAYLOAD_MAX) return Promise.reject(limit(`${what}: ${body.length} bytes`, PAYLOAD_MAX))
    if (this.#waiting.size >= IN_FLIGHT) return Promise.reject(limit(`${what}: too many requests at once`, IN_FLIGHT))
    do this.#serial = (this.#serial + 1) >>> 0
    while (this.#waiting.has(this.#serial))
    const waiting = { ...deferred<Uint8Array>(), type, what }
    this.#waiting.set(this.#serial, waiting)
    this.#link.write(encodeMessage({ type, request: this.#serial, transaction, body }))
    return waiting.promise
  }

  /** Where events with this token go; undefined takes it off. */
  route(token: string, to: ((path: string) => void) | undefined): void {
    if (to === undefined) this.#watches.delete(token)
    else this.#watches.set(token, to)
  }

  close(): void {
    this.#end(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The xenstore handle is closed'))
  }

  #take(bytes: Uint8Array): void {
    try {
      for (const message of this.#reader.push(bytes)) this.#handle(message)
    } catch (error) {
      this.#end(error as CloudAppError)
    }
  }

  #handle(message: StoreMessage): void {
    if (message.type === XS.WATCH_EVENT) {
      const [path = '', token = ''] = splitStrings(message.body)
      this.#watches.get(token)?.(path)
      return
    }
    const waiting = this.#waiting.get(message.request)
    if (waiting === undefined) throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', 'xenstore answered what was not asked')
    if (message.type !== XS.ERROR && message.type !== waiting.type) {
      throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', 'xenstore answered with another type')
    }
    this.#waiting.delete(message.request)
    if (message.type === XS.ERROR) waiting.reject(storeError(message.body, waiting.what))
    else waiting.resolve(message.body)
  }

  #end(reason: CloudAppError): void {
    if (this.closed.aborted) return
    this.#link.close()
    this.#closed.abort(reason)
    for (const { reject } of this.#waiting.values()) reject(reason)
    this.#waiting.clear()
  }
}

function limit(what: string, most: number): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_LIMIT', `xenstore: ${what} (at most ${most})`, { details: { limit: most } })
}
