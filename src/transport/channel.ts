/**
 * Who is at the other end, as the transport itself knows it. Never anything the peer said about itself.
 */
export type PeerIdentity =
  /** The kernel's SO_PEERCRED, taken when the connection was made (unix(7)). */
  | { readonly kind: 'unix'; readonly uid: number; readonly gid: number; readonly pid: number }
  /** The key the peer proved in its TLS handshake, and where the connection came from, which proves nothing. */
  | { readonly kind: 'tls'; readonly key: `ed25519:${string}`; readonly address: string }
  /**
   * Another domain of this Xen host, by the number the hypervisor knows it by. A number says little: `uuid` is what dom0
   * wrote of that domain in xenstore, where no other domain can, and undefined if it wrote nothing. `local` is this side.
   */
  | {
      readonly kind: 'vchan'
      readonly domid: number
      readonly uuid: string | undefined
      readonly local: { readonly domid: number; readonly uuid: string | undefined }
    }
  /** The other half of a pair inside this process. */
  | { readonly kind: 'memory'; readonly name: string }

/**
 * The fourth seam: ordered bytes both ways, backpressure, an end, and the peer's identity as the transport gives it.
 * Sessions, the broker and the standard interface know only this.
 */
export interface Channel extends AsyncDisposable {
  readonly peer: PeerIdentity
  /**
   * Bytes that stand for this very connection: equal at both ends, and not to be had by somebody who relays between two
   * connections. A proof of possession signs them. What they are worth is the transport's to say: see
   * {@link connectUnix}, {@link connectTls}.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` where the transport can not tell connections apart.
   */
  readonly binding: Uint8Array
  /**
   * The next bytes from the peer, as many as there are; undefined after its orderly end. One read at a time. While
   * nobody reads, the peer is held back.
   *
   * @throws CloudAppError `ERR_CLOUDAPP_CLOSED` if the channel was closed here, or broke.
   */
  read(): Promise<Uint8Array | undefined>
  /**
   * Queues bytes, which then belong to the channel. False when more is queued than the peer takes: wait for
   * {@link drained} before the next write. Bytes written to a closed channel are dropped.
   */
  write(bytes: Uint8Array): boolean
  /** Resolves when there is room again, or when the channel has closed. */
  drained(): Promise<void>
  /** Bytes queued here and not yet taken by the transport. */
  readonly queued: number
  /** Fires when the channel has ended at this side; `reason` is a CloudAppError. */
  readonly closed: AbortSignal
  /** Sends what is queued, as far as the peer takes it within a second, then ends. Idempotent. */
  close(): Promise<void>
}

/** Takes channels as they are made. */
export interface ChannelListener extends AsyncDisposable {
  /** Where it listens, as text for people. */
  readonly address: string
  /** Stops taking new channels; those that exist live on. Idempotent. */
  close(): Promise<void>
}

/**
 * Who shares a quota of connections: a user of this host; an address for TLS, where keys cost nothing; this process.
 */
export function quotaGroup(peer: PeerIdentity): string {
  switch (peer.kind) {
    case 'unix':
      return `uid ${peer.uid}`
    case 'tls':
      return `address ${peer.address.slice(0, peer.address.lastIndexOf(':'))}`
    case 'vchan':
      return `domain ${peer.domid}`
    case 'memory':
      return 'memory'
  }
}

/** A short name of a peer for logs and records. */
export function peerName(peer: PeerIdentity): string {
  switch (peer.kind) {
    case 'unix':
      return `uid ${peer.uid}`
    case 'vchan':
      return `domain ${peer.domid} ${peer.uuid ?? 'unknown'}`
    case 'tls':
      return peer.key
    case 'memory':
      return peer.name
  }
}
