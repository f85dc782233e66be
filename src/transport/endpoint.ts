import { CloudAppError } from '../errors.js'
import type { Channel, ChannelListener } from './channel.js'
import type { TlsKey } from './tls-certificate.js'

/** Where a peer is found, as text. See {@link parseEndpoint}. */
export type ParsedEndpoint =
  | { readonly kind: 'unix'; readonly path: string }
  | {
      readonly kind: 'tls'
      readonly host: string
      readonly port: number
      /** The key who listens there must have. */
      readonly peer?: `ed25519:${string}`
    }

const TLS = /^tls:(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253})):(\d{1,5})(?:#(ed25519:[A-Za-z0-9_-]{43}))?$/

/**
 * Reads an endpoint: `/path` or `unix:/path`, a unix socket; `tls:HOST:PORT`, TLS over TCP (an IPv6 address in brackets),
 * to connect to with `#ed25519:…` after it, the key of who listens there.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT`, `ERR_CLOUDAPP_UNSUPPORTED` for a transport there is not.
 */
export function parseEndpoint(text: string): ParsedEndpoint {
  if (typeof text !== 'string' || text === '' || text.length > 4096 || text.includes('\0')) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'An endpoint is a path, unix:/path or tls:HOST:PORT')
  }
  if (text.startsWith('tls:')) {
    const [, v6, name, digits, peer] = TLS.exec(text) ?? []
    const host = v6 ?? name
    const port = Number(digits)
    if (host === undefined || port > 65_535) {
      throw new CloudAppError(
        'ERR_CLOUDAPP_INVALID_ARGUMENT',
        `'${text.slice(0, 100)}' is no endpoint: it looks like tls:HOST:PORT or tls:HOST:PORT#ed25519:…`,
      )
    }
    return { kind: 'tls', host, port, ...(peer === undefined ? {} : { peer: peer as `ed25519:${string}` }) }
  }
  if (text.startsWith('unix:')) return parseEndpoint(text.slice(5))
  const scheme = /^[a-z][a-z0-9+-]*(?=:)/.exec(text)?.[0]
  if (scheme !== undefined) {
    throw new CloudAppError(
      'ERR_CLOUDAPP_UNSUPPORTED',
      `There is no transport ${scheme}; known: unix:/path, tls:HOST:PORT`,
    )
  }
  return { kind: 'unix', path: text }
}

export interface ConnectEndpointOptions {
  /** This side's key; TLS needs one. */
  readonly key?: TlsKey
  /** The key the other side must have, where the endpoint does not say it. */
  readonly peer?: string
  readonly timeout?: number
  readonly signal?: AbortSignal
}

/**
 * Connects to an endpoint. Code for a transport is loaded when it is used.
 *
 * @throws CloudAppError as {@link parseEndpoint}, `connectUnix` and `connectTls`; `ERR_CLOUDAPP_INVALID_ARGUMENT` for TLS
 *   without a key of this side, or without knowing the other's: a peer that could be anybody is not talked to.
 */
export async function connectEndpoint(text: string, options: ConnectEndpointOptions = {}): Promise<Channel> {
  const endpoint = parseEndpoint(text)
  const { key, timeout, signal } = options
  const limits = { ...(timeout === undefined ? {} : { timeout }), ...(signal === undefined ? {} : { signal }) }
  if (endpoint.kind === 'unix') {
    const { connectUnix } = await import('./unix.js')
    return connectUnix({ path: endpoint.path, ...limits })
  }
  const { host, port } = endpoint
  const peer = endpoint.peer ?? options.peer
  if (key === undefined) throw needs('a key of this side')
  if (peer === undefined) throw needs("the other side's public key, as tls:HOST:PORT#ed25519:…")
  if (options.peer !== undefined && options.peer !== peer) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${text} names another key than ${options.peer}`)
  }
  const { connectTls } = await import('./tls.js')
  return connectTls({ host, port, key, peer, ...limits })
}

export interface ListenEndpointOptions {
  /** The listener's key; TLS needs one. */
  readonly key?: TlsKey
  /** Permissions of a unix socket. */
  readonly mode?: number
  readonly maxChannels?: number
  readonly onChannel: (channel: Channel) => void
}

/** Listens on an endpoint. @throws CloudAppError as {@link parseEndpoint}, `listenUnix` and `listenTls` */
export async function listenEndpoint(text: string, options: ListenEndpointOptions): Promise<ChannelListener> {
  const endpoint = parseEndpoint(text)
  const { key, mode, maxChannels, onChannel } = options
  const common = { onChannel, ...(maxChannels === undefined ? {} : { maxChannels }) }
  if (endpoint.kind === 'unix') {
    const { listenUnix } = await import('./unix.js')
    return listenUnix({ path: endpoint.path, ...(mode === undefined ? {} : { mode }), ...common })
  }
  if (mode !== undefined) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'Only a unix socket has a mode')
  if (key === undefined) throw needs('a key of this side')
  const { host, port } = endpoint
  const { listenTls } = await import('./tls.js')
  return listenTls({ host, port, key, ...common })
}

function needs(what: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `A TLS endpoint needs ${what}`)
}
