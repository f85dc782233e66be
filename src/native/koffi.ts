import { createRequire } from 'node:module'
import { type NativeType, type Shim, SIGNATURES } from './abi.js'

const TYPES: Readonly<Record<NativeType, string>> = {
  i32: 'int32_t',
  u32: 'uint32_t',
  u64: 'uint64_t',
  // Typed arrays go by address, without a copy.
  buf: 'void *',
}

/** Binds the signature table with koffi, the default backend. */
export function bindKoffi(path: string): Shim {
  const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi')
  const library = koffi.load(path)
  const bound: Record<string, (...args: unknown[]) => unknown> = {}
  for (const [name, [result, args]] of Object.entries(SIGNATURES)) {
    const call = library.func(
      name,
      TYPES[result],
      args.map((type) => TYPES[type]),
    )
    // koffi gives a number where it is exact and a bigint elsewhere.
    bound[name] = result === 'u64' ? (...values) => BigInt(call(...values)) : call
  }
  return bound as unknown as Shim
}
