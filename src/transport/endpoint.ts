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
  /** A service of another domain of this Xen host: the one that is named, or, without, whom dom0 says. */
  | { readonly kind: 'vchan'; readonly name: string; readonly domid?: number }

const TLS = /^tls:(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253})):(\d{1,5})(?:#(ed25519:[A-Za-z0-9_-]{43}))?$/
const VCHAN = /^vchan:(?:(\d{1,5})\/)?([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)$/

/**
 * Reads an endpoint: a path or `unix:/path`, a unix socket; `tls:HOST:PORT`, TLS over TCP (an IPv6 address in brackets),
 * to connect to with `#ed25519:…` after it, the key of who listens there; `vchan:NAME`, a service that dom0 announces to this
 * domain or has this domain serve, or `vchan:DOMID/NAME`, with that domain only.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT`, `ERR_CLOUDAPP_UNSUPPORTED` for a transport there is not.
 */
export function parseEndpoint(text: string): ParsedEndpoint {
  if (typeof text !== 'string' || text === '' || text.length > 4096 || text.includes('\0')) {
    throw new CloudAppError(
      'ERR_CLOUDAPP_INVALID_ARGUMENT',
      'An endpoint is a path, unix:/path, tls:HOST:PORT or vchan:NAME',
    )
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
  if (text.startsWith('vchan:')) {
    const [, digits, name] = VCHAN.exec(text) ?? []
    // DOMID_FIRST_RESERVED, xen/xen.h.
    if (name === undefined || Number(digits ?? 0) >= 0x7ff0) {
      throw new CloudAppError(
        'ERR_CLOUDAPP_INVALID_ARGUMENT',
        `'${text.slice(0, 100)}' is no endpoint: it looks like vchan:NAME or vchan:DOMID/NAME`,
      )
    }
    return { kind: 'vchan', name, ...(digits === undefined ? {} : { domid: Number(digits) }) }
  }
  if (text.startsWith('unix:')) return parseEndpoint(text.slice(5))
  const scheme = /^[a-z][a-z0-9+-]*(?=:)/.exec(text)?.[0]
  if (scheme !== undefined) {
    throw new CloudAppError(
      'ERR_CLOUDAPP_UNSUPPORTED',
      `There is no transport ${scheme}; known: unix:/path, tls:HOST:PORT, vchan:NAME`,
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
 * @throws CloudAppError as {@link parseEndpoint}, `connectUnix`, `connectTls` and `connectVchan`; `ERR_CLOUDAPP_INVALID_ARGUMENT` for TLS
 *   without a key of this side, or without knowing the other's: a peer that could be anybody is not talked to.
 */
export async function connectEndpoint(text: string, options: ConnectEndpointOptions = {}): Promise<Channel> {
  const endpoint = parseEndpoint(text)
  const { timeout, signal } = options
  const limits = { ...(timeout === undefined ? {} : { timeout }), ...(signal === undefined ? {} : { signal }) }
  if (endpoint.kind === 'unix') {
    const { connectUnix } = await import('./unix.js')
    return connectUnix({ path: endpoint.path, ...limits })
  }
  if (endpoint.kind === 'vchan') {
    const { connectVchanService } = await import('./xen/service.js')
    return connectVchanService(endpoint, limits)
  }
  const { host, port } = endpoint
  const ends = tlsEnds(endpoint, options)
  const { connectTls } = await import('./tls.js')
  return connectTls({ host, port, ...ends, ...limits })
}

/**
 * Refuses what could never be connected to, for who connects later than they are told to.
 *
 * @throws CloudAppError as {@link parseEndpoint}; `ERR_CLOUDAPP_INVALID_ARGUMENT` for TLS as {@link connectEndpoint}
 */
export function checkEndpoint(text: string, options: Pick<ConnectEndpointOptions, 'key' | 'peer'> = {}): void {
  const endpoint = parseEndpoint(text)
  if (endpoint.kind === 'tls') tlsEnds(endpoint, options)
}

function tlsEnds(
  endpoint: Extract<ParsedEndpoint, { kind: 'tls' }>,
  { key, peer = endpoint.peer }: Pick<ConnectEndpointOptions, 'key' | 'peer'>,
): { readonly key: TlsKey; readonly peer: string } {
  if (key === undefined) throw needs('a key of this side')
  if (peer === undefined) throw needs("the other side's public key, as tls:HOST:PORT#ed25519:…")
  if (endpoint.peer !== undefined && endpoint.peer !== peer) {
    const { host, port } = endpoint
    throw new CloudAppError(
      'ERR_CLOUDAPP_INVALID_ARGUMENT',
      `tls:${host}:${port}#${endpoint.peer} names another key than ${peer}`,
    )
  }
  return { key, peer }
}

export interface ListenEndpointOptions {
  /** The listener's key; TLS needs one. */
  readonly key?: TlsKey
  /** Permissions of a unix socket. */
  readonly mode?: number
  readonly maxChannels?: number
  readonly onChannel: (channel: Channel) => void
  /** Told of what keeps it from serving somebody, as time goes: a vchan takes memory of its own for each domain. */
  readonly onError?: (error: CloudAppError) => void
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
  if (endpoint.kind === 'vchan') {
    const { listenVchanService } = await import('./xen/service.js')
    return listenVchanService(endpoint, onChannel, options.onError)
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
