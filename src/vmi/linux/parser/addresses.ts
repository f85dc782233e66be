import { profileError } from '../errors.js'
import type { NamesPlace } from './names.js'
import type { Tokens } from './tokens.js'
import type { Window } from './window.js'

/** Where kallsyms keeps addresses. */
export interface AddressPlace {
  readonly offsets: number
  /** Position of `kallsyms_relative_base`; absent since Linux 7.0, where each offset counts from its own place. */
  readonly relativeBase?: number
}

/** Addresses of all symbols, each as a distance from one origin that is the same for all but the absolute ones. */
export interface Addresses {
  readonly values: Int32Array
  readonly absolute: Uint8Array
  /** What `values` count from: a virtual address, or a position in the window. */
  readonly origin: { readonly virtual: bigint } | { readonly position: number }
}

const align8 = (at: number): number => (at + 7) & ~7

/** __START_KERNEL_map … + 1 GiB. */
function isImageAddress(value: bigint): boolean {
  return value >= 0xffff_ffff_8000_0000n && value < 0xffff_ffff_c000_0000n
}

function readOffsets(window: Window, at: number, count: number): Int32Array {
  const bytes = window.read(at, 4 * count, 'kallsyms_offsets')
  const offsets = new Int32Array(count)
  for (let i = 0; i < count; i++) offsets[i] = bytes.readInt32LE(4 * i)
  return offsets
}

/** How many entries are smaller than the one before: kallsyms is sorted, a wrong interpretation is not. */
function disorder(addresses: Addresses): number {
  let wrong = 0
  for (let i = 1; i < addresses.values.length; i++) {
    if (addresses.absolute[i] !== addresses.absolute[i - 1]) continue
    if ((addresses.values[i] as number) < (addresses.values[i - 1] as number)) wrong++
  }
  return wrong
}

/**
 * Decodes the offsets: from `kallsyms_relative_base`, either plain, or (x86 SMP before 6.15, KALLSYMS_ABSOLUTE_PERCPU)
 * negative ones counted down from base - 1 and positive ones absolute; or from the place of each offset (7.0).
 */
export function decodeAddresses(window: Window, place: AddressPlace, count: number): Addresses {
  const values = readOffsets(window, place.offsets, count)
  const absolute = new Uint8Array(count)
  if (place.relativeBase === undefined) {
    for (let i = 0; i < count; i++) values[i] = (values[i] as number) + 4 * i
    return { values, absolute, origin: { position: place.offsets } }
  }
  const virtual = window.read(place.relativeBase, 8, 'kallsyms_relative_base').readBigUInt64LE()
  let negative = 0
  for (let i = 0; i < count; i++) if ((values[i] as number) < 0) negative++
  if (negative * 2 > count) {
    for (let i = 0; i < count; i++) {
      const value = values[i] as number
      if (value < 0) values[i] = -1 - value
      else absolute[i] = 1
    }
  }
  return { values, absolute, origin: { virtual } }
}

/** Finds the offsets by the order of the tables: before the names (to 6.3), or behind the tokens (6.4, and 7.0). */
export function findAddresses(window: Window, tokens: Tokens, names: NamesPlace): Addresses {
  const { count, countAt } = names
  const size = align8(4 * count)
  // Names right behind their count: tables are aligned to 4 bytes (since 7.0), else to 8.
  const behind = names.names === countAt + 4 ? tokens.index + 512 : align8(tokens.index + 512)
  const candidates: AddressPlace[] = [
    { offsets: countAt - 8 - size, relativeBase: countAt - 8 },
    { offsets: behind, relativeBase: behind + size },
    { offsets: behind },
  ]
  for (const place of candidates) {
    if (!window.holds(place.offsets, size + 8)) continue
    const addresses = decodeAddresses(window, place, count)
    if ('virtual' in addresses.origin) {
      const { virtual } = addresses.origin
      if (!isImageAddress(virtual) || (virtual & 0xfffn) !== 0n) continue
    }
    if (disorder(addresses) <= count / 1000) return addresses
  }
  throw profileError(
    'kallsyms_offsets',
    `no table of ${count} ascending offsets stands before the names (image offset ${countAt}) or behind the tokens (${behind})`,
  )
}
