import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import { type AddressInfo, BlockList, isIP } from 'node:net'
import type { KeyPair } from '../../capabilities/keys.js'
import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import type { Channel } from '../../transport/channel.js'
import { opener } from '../client.js'
import type { Endpoint } from '../discover.js'
import { send, sendError, sendJson } from './answer.js'
import { Credentials } from './credentials.js'
import { openApi } from './openapi.js'
import { queryOf, type Route, routeOf } from './routes.js'

export interface GatewayOptions {
  /** The service domain, as `SdClient.connect` takes it. */
  readonly endpoint: Endpoint | string | (() => Promise<Channel>)
  /**
   * A customer's key: who bears the secret sees what is that customer's. A TLS endpoint needs a key, a customer's or any
   * other.
   */
  readonly key?: KeyPair
  /** Address to listen on: an IP address. 127.0.0.1 by default; another than loopback needs `tls`. */
  readonly host?: string
  /** 0, any free one, by default. */
  readonly port?: number
  /** Certificate chain and private key, PEM. Without, it is plain HTTP. */
  readonly tls?: { readonly cert: string; readonly key: string }
  /**
   * A secret, of at least 32 characters: who bears it sees what the gateway's own user sees at the service domain. Without,
   * only passes are taken (`makePass`).
   */
  readonly secret?: string
}

/** A running gateway. Close it, or use `await using`. */
export interface Gateway extends AsyncDisposable {
  /** Such as `http://127.0.0.1:8080`. */
  readonly url: string
  /** Stops listening and ends every answer. Idempotent. */
  close(): Promise<void>
}

/** What one gateway bears. */
export const GATEWAY_LIMITS = {
  connections: 256,
  /** Requests at work, and of them those that go on (watches, exports, runs, artifacts). */
  requests: 64,
  streams: 32,
  /** Bytes. */
  headers: 16 * 1024,
  url: 4096,
  body: 8 * 1024,
  /** Milliseconds for a request to arrive, and for an answer that is no stream. */
  requestMs: 30_000,
} as const

const loopback = new BlockList()
loopback.addSubnet('127.0.0.0', 8, 'ipv4')
loopback.addAddress('::1', 'ipv6')

/**
 * Serves the standard interface as plain HTTP and JSON, for `curl` and for a SIEM: the same methods, the same answers, and
 * for each bearer what the service domain shows it. `/openapi.json` describes it.
 *
 * The service domain may be away when it opens: requests are answered 503 until it is back.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` for an address that is not loopback without TLS, or one that can not
 *   be listened on; this or `ERR_CLOUDAPP_UNSUPPORTED` for an endpoint that can never be reached.
 */
export async function openGateway(options: GatewayOptions): Promise<Gateway> {
  checkOptions('openGateway', options, ['endpoint', 'key', 'host', 'port', 'tls', 'secret'])
  checkOptions('openGateway tls', options.tls, ['cert', 'key'])
  const { host = '127.0.0.1', port = 0, tls, secret, key } = options
  const family = isIP(host)
  if (family === 0) throw misused(`host is an IP address, not ${JSON.stringify(host).slice(0, 80)}`)
  if (tls === undefined && !loopback.check(host, family === 6 ? 'ipv6' : 'ipv4')) {
    throw misused(`${host} is not loopback: bearers would cross the network in the clear; give it a certificate`)
  }
  if (secret !== undefined && secret.length < 32) throw misused('a secret has at least 32 characters')
  const gateway = new HttpGateway(new Credentials(opener(options.endpoint, key), secret, key), tls)
  await gateway.listen(host, port)
  return gateway
}

class HttpGateway implements Gateway {
  readonly #credentials: Credentials
  readonly #server: Server
  readonly #scheme: string
  readonly #closed = new AbortController()
  #requests = 0
  #streams = 0
  #closing: Promise<void> | undefined

  constructor(credentials: Credentials, tls: GatewayOptions['tls']) {
    this.#credentials = credentials
    this.#scheme = tls ? 'https' : 'http'
    const settings = {
      maxHeaderSize: GATEWAY_LIMITS.headers,
      headersTimeout: GATEWAY_LIMITS.requestMs / 2,
      requestTimeout: GATEWAY_LIMITS.requestMs,
      keepAliveTimeout: 5000,
      connectionsCheckingInterval: 5000,
    }
    const serve = (request: IncomingMessage, response: ServerResponse) => void this.#serve(request, response)
    this.#server = tls ? createTlsServer({ ...settings, ...tls }, serve) : createServer(settings, serve)
    this.#server.maxConnections = GATEWAY_LIMITS.connections
    this.#server.maxRequestsPerSocket = 1000
  }

  get url(): string {
    const { address, port, family } = this.#server.address() as AddressInfo
    return `${this.#scheme}://${family === 'IPv6' ? `[${address}]` : address}:${port}`
  }

  async listen(host: string, port: number): Promise<void> {
    await new Promise<void>((done, fail) => {
      this.#server.once('error', (cause: NodeJS.ErrnoException) => {
        fail(
          new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${host}:${port} can not be listened on (${cause.code})`, {
            cause,
          }),
        )
      })
      this.#server.listen(port, host, done)
    })
  }

  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(): Promise<void> {
    this.#closed.abort(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The gateway is closed'))
    const closed = new Promise((resolve) => this.#server.close(resolve))
    this.#server.closeAllConnections()
    await closed
    await this.#credentials.close()
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.setHeader('cache-control', 'no-store')
    response.setHeader('x-content-type-options', 'nosniff')
    // A reader that goes away, or breaks its connection, is no failure of the gateway.
    response.on('error', () => response.destroy())
    let counted = false
    let streaming = false
    try {
      if (++this.#requests > GATEWAY_LIMITS.requests) {
        counted = true
        throw busy('requests')
      }
      counted = true
      const found = this.#find(request)
      if (found === undefined) {
        sendJson(response, 200, openApi())
        return
      }
      const { route, values } = found
      const body = await bodyOf(request, route)
      using held = await this.#credentials.take(bearerOf(request))
      if (route.stream) {
        streaming = true
        if (++this.#streams > GATEWAY_LIMITS.streams) throw busy('streams')
      }
      const gone = new AbortController()
      response.once('close', () => gone.abort())
      const signals = [gone.signal, this.#closed.signal]
      if (!route.stream) signals.push(AbortSignal.timeout(GATEWAY_LIMITS.requestMs))
      const signal = AbortSignal.any(signals)
      const answer = await route.run({ client: held.client, values, body, signal })
      await send(response, answer, signal)
    } catch (error) {
      if (error instanceof Refused) sendError(response, error.cause, error.status)
      else sendError(response, error)
    } finally {
      if (counted) this.#requests--
      if (streaming) this.#streams--
      // What of the request was not read would stand in the way of the next on this connection.
      request.resume()
    }
  }

  /** The route and its values; undefined for the description, which anybody may read. */
  #find(request: IncomingMessage): { route: Route; values: Record<string, string> } | undefined {
    const { url = '', method = '' } = request
    if (url.length > GATEWAY_LIMITS.url) throw new Refused(414, misused('The address is too long'))
    const mark = url.indexOf('?')
    const path = mark < 0 ? url : url.slice(0, mark)
    if (path === '/openapi.json' && method === 'GET') return undefined
    const { route, values, allow } = routeOf(method, path)
    if (!route) {
      if (allow.length > 0) throw new Refused(405, misused(`This address takes ${allow.join(', ')}`))
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', 'There is nothing at this address; see /openapi.json')
    }
    return { route, values: { ...queryOf(route, new URLSearchParams(mark < 0 ? '' : url.slice(mark + 1))), ...values } }
  }
}

/** An error with a status of its own. */
class Refused extends Error {
  constructor(
    readonly status: number,
    cause: CloudAppError,
  ) {
    super(cause.message, { cause })
  }
}

function bearerOf(request: IncomingMessage): string {
  const [, bearer] = /^Bearer ([!-~]{1,1024})$/i.exec(request.headers.authorization ?? '') ?? []
  if (bearer !== undefined) return bearer
  throw new CloudAppError('ERR_CLOUDAPP_PROOF', 'Say who asks: Authorization: Bearer …')
}

async function bodyOf(request: IncomingMessage, route: Route): Promise<unknown> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > GATEWAY_LIMITS.body) throw new Refused(413, misused(`A body has at most ${GATEWAY_LIMITS.body} bytes`))
    chunks.push(chunk)
  }
  if (size === 0) return undefined
  if (route.body === undefined) throw misused('This address takes no body')
  const type = request.headers['content-type'] ?? ''
  if (!/^application\/json\s*(;|$)/i.test(type)) throw new Refused(415, misused('A body is application/json'))
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8'))
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'The body is no JSON', { cause })
  }
}

function busy(limit: 'requests' | 'streams'): Refused {
  const most = GATEWAY_LIMITS[limit]
  const message = `The gateway has ${most} ${limit} at work; try again`
  return new Refused(503, new CloudAppError('ERR_CLOUDAPP_LIMIT', message, { details: { limit, most } }))
}

function misused(message: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', message)
}
