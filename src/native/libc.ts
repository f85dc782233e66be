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
  mallopt: ['i32', ['i32', 'i32']],
} satisfies Record<string, [result: NativeType, args: readonly NativeType[]]>

let getsockopt: NativeCall | undefined

function load(name: keyof typeof LIBC): NativeCall {
  try {
    const library = backendFromEnvironment() === 'koffi' ? openKoffi('libc.so.6') : openFfiNapi('libc.so.6')
    const [result, args] = LIBC[name]
    return library.bind(name, result, args)
  } catch (cause) {
    if (CloudAppError.is(cause)) throw cause
    throw new CloudAppError('ERR_CLOUDAPP_NATIVE', `The C library's ${name} could not be called`, { cause })
  }
}

/**
 * The kernel's word on who is at the other end of the connected unix socket `fd` (SO_PEERCRED).
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NATIVE` if the call fails or the C library can not be reached.
 */
export function peerCredentials(fd: number): PeerCredentials {
  getsockopt ??= load('getsockopt')
  const value = new Uint8Array(12)
  const length = new Uint8Array([value.length, 0, 0, 0])
  const status = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, value, length)
  if (status !== 0 || length[0] !== value.length) {
    throw new CloudAppError('ERR_CLOUDAPP_NATIVE', `SO_PEERCRED failed on descriptor ${fd}`)
  }
  const view = new DataView(value.buffer)
  return { pid: view.getInt32(0, true), uid: view.getUint32(4, true), gid: view.getUint32(8, true) }
}

// malloc.h
const M_TRIM_THRESHOLD = -1
const M_MMAP_THRESHOLD = -3
/** The most glibc takes: HEAP_MAX_SIZE / 2. */
const MMAP_THRESHOLD = 32 * 1024 * 1024

/**
 * Has malloc keep up to `bytes` of what this process has freed, and give it out again. As it comes, glibc goes to the kernel for
 * each large piece, and each of its pages is cleared and mapped anew. For a process that is ours alone, as it is its whole
 * memory that this is about.
 *
 * @returns false where the C library is another, which changes nothing but speed.
 */
export function keepFreedMemory(bytes: number): boolean {
  try {
    const mallopt = load('mallopt')
    return mallopt(M_TRIM_THRESHOLD, bytes) === 1 && mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD) === 1
  } catch (error) {
    if (CloudAppError.is(error, 'ERR_CLOUDAPP_NATIVE')) return false
    throw error
  }
}
