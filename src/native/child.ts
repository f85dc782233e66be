import { createRequire } from 'node:module'
import { findNativeLibrary } from './find.js'

/**
 * What a small child process needs to call the native library by itself: the FFI's module and the library, as paths.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NATIVE` if the library is missing.
 */
export function nativeForChild(): { readonly koffi: string; readonly library: string } {
  return { koffi: createRequire(import.meta.url).resolve('koffi'), library: findNativeLibrary() }
}
