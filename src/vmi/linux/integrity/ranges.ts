/** A half-open range of addresses with what it is. */
export interface Range<T> {
  readonly start: bigint
  readonly end: bigint
  readonly value: T
}

/** Ranges sorted by start for look-up by address. Where ranges overlap, the one that starts last wins. */
export class RangeMap<T> {
  readonly #ranges: readonly Range<T>[]
  /** Greatest end among the ranges up to an index, so that a look-up behind a long range need not go to the front. */
  readonly #reach: readonly bigint[]

  constructor(ranges: Iterable<Range<T>>) {
    this.#ranges = [...ranges]
      .filter((r) => r.end > r.start)
      .sort((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0))
    let reach = 0n
    this.#reach = this.#ranges.map((r) => {
      if (r.end > reach) reach = r.end
      return reach
    })
  }

  /** Where the first range starts; 0n if there is none. */
  get start(): bigint {
    return this.#ranges[0]?.start ?? 0n
  }

  /** Where the range that goes farthest ends. */
  get end(): bigint {
    return this.#reach.at(-1) ?? 0n
  }

  get size(): number {
    return this.#ranges.length
  }

  /** The range that holds `address`. */
  at(address: bigint): Range<T> | undefined {
    for (let i = this.#before(address); i >= 0; i--) {
      const range = this.#ranges[i] as Range<T>
      if (address < range.end) return range
      if ((this.#reach[i] as bigint) <= address) return undefined
    }
    return undefined
  }

  /** The parts of `[start, end)` that no range covers. */
  *gaps(start: bigint, end: bigint): Generator<{ start: bigint; end: bigint }> {
    let at = start
    // Ranges that start before `start` may reach into it.
    const first = this.#before(start)
    if (first >= 0 && (this.#reach[first] as bigint) > at) at = this.#reach[first] as bigint
    for (let i = first + 1; i < this.#ranges.length && at < end; i++) {
      const range = this.#ranges[i] as Range<T>
      if (range.start >= end) break
      if (range.start > at) yield { start: at, end: range.start }
      if (range.end > at) at = range.end
    }
    if (at < end) yield { start: at, end }
  }

  /** Index of the last range that starts at or before `address`, or -1. */
  #before(address: bigint): number {
    let low = 0
    let high = this.#ranges.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.#ranges[middle] as Range<T>).start <= address) low = middle + 1
      else high = middle
    }
    return low - 1
  }
}
