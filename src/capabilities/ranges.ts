/**
 * A set of 64-bit addresses as ranges, each `{ first, last }` with `last` **included** (so that the top of the address
 * space can be named): ascending, not overlapping and not touching. That form is unique, which makes "is a subset" and
 * "is equal" plain comparisons.
 */
export interface AddressRange {
  readonly first: bigint
  /** The last address that belongs to the range. */
  readonly last: bigint
}

export const MAX_ADDRESS = 0xffff_ffff_ffff_ffffn

/** The whole 64-bit space. */
export const ALL_ADDRESSES: readonly AddressRange[] = [{ first: 0n, last: MAX_ADDRESS }]

/** True if `ranges` are in the form described at {@link AddressRange}. */
export function areCanonical(ranges: readonly AddressRange[]): boolean {
  let after = -1n
  for (const { first, last } of ranges) {
    if (first < 0n || last < first || last > MAX_ADDRESS) return false
    // Touching ranges must be written as one: `first` leaves a gap to the range before.
    if (after !== -1n && first <= after) return false
    after = last + 1n
  }
  return true
}

/** Brings any ranges into the unique form. */
export function canonicalRanges(ranges: readonly AddressRange[]): AddressRange[] {
  const sorted = [...ranges].sort((a, b) => (a.first < b.first ? -1 : a.first > b.first ? 1 : 0))
  const out: { first: bigint; last: bigint }[] = []
  for (const { first, last } of sorted) {
    const top = out[out.length - 1]
    if (top !== undefined && first <= top.last + 1n) {
      if (last > top.last) top.last = last
    } else {
      out.push({ first, last })
    }
  }
  return out
}

/** True if every address of `inner` is in `outer`; both canonical. */
export function rangesWithin(inner: readonly AddressRange[], outer: readonly AddressRange[]): boolean {
  let at = 0
  for (const { first, last } of inner) {
    while (at < outer.length && (outer[at] as AddressRange).last < first) at++
    const cover = outer[at]
    if (cover === undefined || cover.first > first || cover.last < last) return false
  }
  return true
}

/** The addresses in both; both canonical. */
export function meetRanges(a: readonly AddressRange[], b: readonly AddressRange[]): AddressRange[] {
  const out: AddressRange[] = []
  let i = 0
  let j = 0
  while (i < a.length && j < b.length) {
    const x = a[i] as AddressRange
    const y = b[j] as AddressRange
    const first = largest(x.first, y.first)
    const last = -largest(-x.last, -y.last)
    if (first <= last) out.push({ first, last })
    if (x.last < y.last) i++
    else j++
  }
  return out
}

/** True if all of `[first, last]` is in the canonical `ranges`. */
export function rangesCover(ranges: readonly AddressRange[], first: bigint, last: bigint): boolean {
  let low = 0
  let high = ranges.length - 1
  while (low <= high) {
    const middle = (low + high) >> 1
    const range = ranges[middle] as AddressRange
    if (range.last < first) low = middle + 1
    else if (range.first > first) high = middle - 1
    else return range.last >= last
  }
  return false
}

// Math.max takes no bigint.
function largest(a: bigint, b: bigint): bigint {
  if (a > b) return a
  return b
}
