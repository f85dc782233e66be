import { createHash } from 'node:crypto'
import type { Socket } from 'node:net'
import { CloudAppError } from '../errors.js'
import { type PeerCredentials, peerCredentials } from '../native/libc.js'
import { SocketChannel } from './socket-channel.js'

/**
 * The binding of a unix connection: a hash over who listens and who connected, as uid and pid. Each end knows itself and
 * asks the kernel for the other, so a relay (another process, hence another pid) makes the two ends compute different
 * bytes. It does not tell apart two connections between the same two processes; the nonces of the proof do that. Both
 * ends must live in one pid and one user namespace, or they see different numbers.
 */
function unixBinding(server: Omit<PeerCredentials, 'gid'>, client: Omit<PeerCredentials, 'gid'>): Uint8Array {
  const text = `cloudapp unix binding v1\0${server.uid} ${server.pid}\0${client.uid} ${client.pid}`
  return new Uint8Array(createHash('sha256').update(text).digest())
}

/** A connected unix socket as a channel. @throws CloudAppError `ERR_CLOUDAPP_CLOSED` if it is a server's and gone already. */
export function unixChannel(socket: Socket, role: 'server' | 'client'): SocketChannel {
  // The server is the one who decides by identity: taken at once, while the descriptor surely lives. Who only connects needs
  // no native call.
  let known = role === 'server' ? credentialsOf(socket) : undefined
  const ask = () => {
    known ??= credentialsOf(socket)
    return known
  }
  const binding = () => {
    const peer = ask()
    if (peer.pid === 0) {
      throw new CloudAppError(
        'ERR_CLOUDAPP_UNSUPPORTED',
        'The peer lives in another pid namespace: a unix connection to it can not be bound to a proof of possession',
      )
    }
    const self = { uid: process.getuid?.() ?? -1, pid: process.pid }
    return role === 'server' ? unixBinding(self, peer) : unixBinding(peer, self)
  }
  const peer = {
    kind: 'unix' as const,
    get uid() {
      return ask().uid
    },
    get gid() {
      return ask().gid
    },
    get pid() {
      return ask().pid
    },
  }
  return new SocketChannel(socket, { peer, binding, readToEnd: false })
}

function credentialsOf(socket: Socket): PeerCredentials {
  // Node has no public way to the descriptor of a socket; `_handle.fd` has been it since Node 0.x.
  const fd = (socket as unknown as { _handle?: { fd?: number } | null })._handle?.fd
  if (fd === undefined || fd < 0) throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'The channel is closed')
  return peerCredentials(fd)
}
