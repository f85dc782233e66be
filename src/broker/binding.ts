import type { TransportBinding } from '../capabilities/binding.js'
import type { TransportName } from '../capabilities/caveats.js'
import { CloudAppError } from '../errors.js'
import type { Channel, PeerIdentity } from '../transport/channel.js'

/** What both ends of a channel to the broker know of it, as the proof of possession signs it. */
export function bindingOf(channel: Channel, end: 'broker' | 'holder'): TransportBinding {
  const { peer } = channel
  switch (peer.kind) {
    case 'unix': {
      if (end === 'holder') return { transport: 'unix', clientPid: process.pid, clientUid: process.getuid?.() ?? -1 }
      if (peer.pid === 0) {
        throw new CloudAppError(
          'ERR_CLOUDAPP_UNSUPPORTED',
          'The peer lives in another pid namespace: its unix connection can not be bound to a proof of possession',
        )
      }
      return { transport: 'unix', clientPid: peer.pid, clientUid: peer.uid }
    }
    case 'tls':
      return { transport: 'tls', exporter: channel.binding }
    case 'vchan':
      return vchanBinding(peer, end)
    case 'memory':
      return { transport: 'process', session: Buffer.from(channel.binding).toString('hex') }
  }
}

/** The transport's name in tokens. */
export function transportOf(channel: Channel): TransportName {
  const { kind } = channel.peer
  return kind === 'memory' ? 'process' : kind
}

/** The peer as the audit log names it. */
export function peerText(channel: Channel): string {
  const { peer } = channel
  switch (peer.kind) {
    case 'unix':
      return `unix uid=${peer.uid} gid=${peer.gid} pid=${peer.pid}`
    case 'tls':
      return `tls key=${peer.key} address=${peer.address}`
    case 'vchan':
      return `vchan domid=${peer.domid} uuid=${peer.uuid ?? 'unknown'}`
    case 'memory':
      return `process ${peer.name}`
  }
}

/** The two domains, as dom0 wrote them in xenstore: a relay in a third domain makes the two ends see different ones. */
function vchanBinding(peer: PeerIdentity & { kind: 'vchan' }, end: 'broker' | 'holder'): TransportBinding {
  const near = peer.local
  for (const [who, { domid, uuid }] of Object.entries({ 'this domain': near, 'the peer': peer })) {
    if (uuid !== undefined) continue
    throw new CloudAppError(
      'ERR_CLOUDAPP_UNSUPPORTED',
      `dom0 has not written in xenstore which VM ${who} (domain ${domid}) is: a vchan to it can not be bound to a proof of possession`,
    )
  }
  const [broker, client] = end === 'broker' ? [near, peer] : [peer, near]
  return {
    transport: 'vchan',
    clientDomid: client.domid,
    clientUuid: client.uuid as string,
    brokerDomid: broker.domid,
    brokerUuid: broker.uuid as string,
  }
}
