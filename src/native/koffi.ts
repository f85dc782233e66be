import { createRequire } from 'node:module'
import type { NativeCall, NativeLibrary, NativeType } from './abi.js'

const TYPES: Readonly<Record<NativeType, string>> = {
  i32: 'int32_t',
  u32: 'uint32_t',
  u64: 'uint64_t',
  // Typed arrays go by address, without a copy.
  buf: 'void *',
}

/** Opens a library with koffi, the default backend. */
export function openKoffi(path: string): NativeLibrary {
  const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi')
  const library = koffi.load(path)
  return {
    bind(name, result, args) {
      const types = args.map((type) => TYPES[type])
      const call = library.func(name, TYPES[result], types) as NativeCall
      // koffi gives a number where it is exact and a bigint elsewhere.
      return result === 'u64' ? (...values) => BigInt(call(...values) as number | bigint) : call
    },
  }
}
