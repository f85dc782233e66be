import { CloudAppError } from '../errors.js'
import type { PeerIdentity } from '../transport/channel.js'
import type { VmScope } from './scope.js'

/**
 * Which VMs' findings a peer may see and act on: all, or those with these uuids. Nothing is an empty list, and a peer with
 * an empty list can not tell whether there is anything.
 */
export type VmFilter = 'all' | readonly string[]

/**
 * Decides by who the transport says the peer is. Called for each call of the peer and each record it is given, so a change
 * of mind takes effect at once: keep it cheap. If it throws, the peer sees nothing.
 */
export type AccessHook = (peer: PeerIdentity) => VmFilter

/** Root, and the user this process runs as, see all; a domain sees what is about itself; nobody else sees anything. */
export const ownUserOnly: AccessHook = (peer) => {
  if (peer.kind === 'memory') return 'all'
  if (peer.kind === 'tls') return []
  if (peer.kind === 'vchan') return peer.uuid === undefined ? [] : [peer.uuid]
  return peer.uid === 0 || peer.uid === process.getuid?.() ? 'all' : []
}

/** The hook's answer as a scope. */
export function scopeFor(access: AccessHook, peer: PeerIdentity): VmScope {
  const filter = access(peer)
  if (filter === 'all') return 'all'
  if (!Array.isArray(filter)) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', "access must answer 'all' or a list of VM uuids")
  }
  return new Set(filter.map((uuid) => String(uuid).toLowerCase()))
}
