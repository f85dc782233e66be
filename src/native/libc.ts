import { CloudAppError } from '../errors.js'
import type { NativeCall, NativeType } from './abi.js'
import { openFfiNapi } from './ffi-napi.js'
import { openKoffi } from './koffi.js'
import { backendFromEnvironment } from './shim.js'

/** struct ucred of unix(7): who was at the other end of a unix socket when the connection was made. */
export interface PeerCredentials {
  readonly pid: number
  readonly uid: number
  readonly gid: number
}

// asm-generic/socket.h
const SOL_SOCKET = 1
const SO_PEERCRED = 17

/** Functions of the C library, in the words of the signature table (abi.ts). */
const LIBC = {
  getsockopt: ['i32', ['i32', 'i32', 'i32', 'buf', 'buf']],
} as const satisfies Record<string, readonly [result: NativeType, args: readonly NativeType[]]>

let getsockopt: NativeCall | undefined

function load(): NativeCall {
  try {
    const library = backendFromEnvironment() === 'koffi' ? openKoffi('libc.so.6') : openFfiNapi('libc.so.6')
    return library.bind('getsockopt', ...LIBC.getsockopt)
  } catch (cause) {
    if (CloudAppError.is(cause)) throw cause
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
  const length = new Uint8Array([value.length, 0, 0, 0])
  const status = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, value, length)
  if (status !== 0 || length[0] !== value.length) {
    throw new CloudAppError('ERR_CLOUDAPP_NATIVE', `SO_PEERCRED failed on descriptor ${fd}`)
  }
  const view = new DataView(value.buffer)
  return { pid: view.getInt32(0, true), uid: view.getUint32(4, true), gid: view.getUint32(8, true) }
}
