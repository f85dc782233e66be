import { CloudAppError, type CloudAppErrorCode } from '../errors.js'
import { ABI_VERSION, type NativeCall, type Shim, SIGNATURES } from './abi.js'
import { openFfiNapi } from './ffi-napi.js'
import { findNativeLibrary } from './find.js'
import { openKoffi } from './koffi.js'

/** What binds the native library: `koffi` unless the environment variable `CLOUDAPP_FFI` says `ffi-napi`. */
export type FfiBackend = 'koffi' | 'ffi-napi'

const loaded = new Map<string, Shim>()

/**
 * The native library, loaded once per backend and path.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NATIVE` if it is missing, can not be loaded, or is of another ABI version.
 */
export function loadShim(backend: FfiBackend = backendFromEnvironment(), path: string = findNativeLibrary()): Shim {
  const key = `${backend}:${path}`
  const known = loaded.get(key)
  if (known !== undefined) return known
  const shim = bind(backend, path)
  loaded.set(key, shim)
  return shim
}

/** The backend `CLOUDAPP_FFI` chooses. @throws CloudAppError `ERR_CLOUDAPP_NATIVE` */
export function backendFromEnvironment(): FfiBackend {
  const wanted = process.env.CLOUDAPP_FFI
  if (wanted === undefined || wanted === '' || wanted === 'koffi') return 'koffi'
  if (wanted === 'ffi-napi') return wanted
  throw new CloudAppError('ERR_CLOUDAPP_NATIVE', `CLOUDAPP_FFI is '${wanted}': use koffi or ffi-napi`)
}

function bind(backend: FfiBackend, path: string): Shim {
  try {
    const library = backend === 'koffi' ? openKoffi(path) : openFfiNapi(path)
    // First, as a library of another version may lack the other functions.
    const version = library.bind('ca_abi_version', ...SIGNATURES.ca_abi_version)()
    if (version !== ABI_VERSION) {
      throw new CloudAppError(
        'ERR_CLOUDAPP_NATIVE',
        `${path} has ABI version ${String(version)}, this package needs ${ABI_VERSION}: install both in the same version`,
        { details: { path, found: String(version), needed: ABI_VERSION } },
      )
    }
    const bound: Record<string, NativeCall> = {}
    for (const [name, [result, args]] of Object.entries(SIGNATURES)) bound[name] = library.bind(name, result, args)
    return bound as unknown as Shim
  } catch (cause) {
    if (CloudAppError.is(cause)) throw cause
    const needs = backend === 'koffi' ? 'koffi' : 'ffi-napi and ref-napi (optional peers: npm install them)'
    throw new CloudAppError('ERR_CLOUDAPP_NATIVE', `${path} could not be loaded through ${needs}: ${text(cause)}`, {
      details: { path, backend },
      cause,
    })
  }
}

const text = (cause: unknown) => (cause instanceof Error ? cause.message : String(cause))

/** enum ca_error. */
const CODES: Readonly<Record<number, CloudAppErrorCode>> = {
  [-1]: 'ERR_CLOUDAPP_INVALID_ARGUMENT',
  [-2]: 'ERR_CLOUDAPP_CLOSED',
  [-3]: 'ERR_CLOUDAPP_SOURCE',
  [-4]: 'ERR_CLOUDAPP_LIMIT',
  [-5]: 'ERR_CLOUDAPP_REVOKED',
  [-6]: 'ERR_CLOUDAPP_UNSUPPORTED',
  [-7]: 'ERR_CLOUDAPP_UNSUPPORTED',
  [-8]: 'ERR_CLOUDAPP_NATIVE',
  [-9]: 'ERR_CLOUDAPP_SOURCE',
  [-10]: 'ERR_CLOUDAPP_UNSUPPORTED',
  [-20]: 'ERR_CLOUDAPP_PROTOCOL',
}

/** Passes a result that is no error on, and throws a negative one as a CloudAppError with the native text. */
export function checked(shim: Shim, result: number): number {
  if (result >= 0) return result
  const buffer = new Uint8Array(512)
  const length = Math.min(shim.ca_last_error(buffer, buffer.length), buffer.length - 1)
  throw nativeError(result, Buffer.from(buffer.buffer, 0, length).toString('utf8'))
}

/** The error of a value of enum ca_error, with its text. */
export function nativeError(result: number, message: string): CloudAppError {
  return new CloudAppError(CODES[result] ?? 'ERR_CLOUDAPP_NATIVE', message, { details: { native: result } })
}
