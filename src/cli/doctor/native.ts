import { createRequire } from 'node:module'
import { CloudAppError } from '../../errors.js'
import { ABI_VERSION } from '../../native/abi.js'
import { findNativeLibrary } from '../../native/find.js'
import { type FfiBackend, loadShim } from '../../native/shim.js'
import { bad, type Check, missing, ok } from './check.js'

/** The native library, loaded through the backend that a program on this host would use. */
export function checkNative(): Check {
  try {
    const path = findNativeLibrary()
    const backend = process.env.CLOUDAPP_FFI || 'koffi'
    loadShim()
    return ok('native library', `${path}, ABI version ${ABI_VERSION}, through ${backend}`)
  } catch (error) {
    const fix = CloudAppError.is(error) ? error.details?.fix : undefined
    return bad('native library', message(error), typeof fix === 'string' ? fix : 'reinstall @cloudapp/sdk')
  }
}

/** Each FFI backend by itself: koffi comes with this package, ffi-napi is an optional peer. */
export function checkBackend(backend: FfiBackend): Check {
  const needs = backend === 'koffi' ? ['koffi'] : ['ffi-napi', 'ref-napi']
  const fix = `npm install --ignore-scripts ${needs.join(' ')}`
  const chosen = (process.env.CLOUDAPP_FFI || 'koffi') === backend
  const problem = (found: string, how: string) => (chosen ? bad : missing)(backend, found, how)
  const require = createRequire(import.meta.url)
  const absent = needs.filter((name) => {
    try {
      require.resolve(name)
      return false
    } catch {
      // That it is absent is the answer.
      return true
    }
  })
  if (absent.length > 0) return problem(`${absent.join(' and ')} not installed`, fix)
  try {
    loadShim(backend)
    return ok(backend, chosen ? 'works, in use' : 'works; CLOUDAPP_FFI chooses it')
  } catch (error) {
    return problem(message(error), fix)
  }
}

const message = (error: unknown) => (error instanceof Error ? error.message : String(error))
