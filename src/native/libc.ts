import { createRequire } from 'node:module'
import { CloudAppError } from '../errors.js'

/** struct ucred of unix(7): who was at the other end of a unix socket when the connection was made. */
export interface PeerCredentials {
  readonly pid: number
  readonly uid: number
  readonly gid: number
}

// asm-generic/socket.h
const SOL_SOCKET = 1
const SO_PEERCRED = 17

type GetSockOpt = (fd: number, level: number, option: number, value: Uint8Array, length: Uint32Array) => number

let getsockopt: GetSockOpt | undefined

function load(): GetSockOpt {
  try {
    const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi')
    const libc = koffi.load('libc.so.6')
    return libc.func('int getsockopt(int fd, int level, int option, void *value, uint32_t *length)') as GetSockOpt
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_NATIVE', 'The C library could not be called for SO_PEERCRED', { cause })
  }
}

/**
 * The kernel's word on who is at the other end of the connected unix socket `fd` (SO_PEERCRED).
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NATIVE` if the call fails or the C library can not be reached.
 */
export function peerCredentials(fd: number): PeerCredentials {
  getsockopt ??= load()
  const value = new Uint8Array(12)
  const length = new Uint32Array([value.length])
  const status = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, value, length)
  if (status !== 0 || length[0] !== value.length) {
    throw new CloudAppError('ERR_CLOUDAPP_NATIVE', `SO_PEERCRED failed on descriptor ${fd}`)
  }
  const view = new DataView(value.buffer)
  return { pid: view.getInt32(0, true), uid: view.getUint32(4, true), gid: view.getUint32(8, true) }
}
