/** Bytes of the parts a long table is kept in until it is whole: few and not small, or collecting them takes longer than the walk. */
const PART = 256 * 1024

/** Rows column by column in one buffer. */
interface Part {
  readonly bytes: Uint8Array
  /** Rows there is room for, in each column. */
  readonly room: number
  rows: number
}

/** A result in columns that comes some rows at a time. A long one is put together at the end, a part at a time. */
export class Table {
  readonly #widths: readonly number[]
  readonly #rowBytes: number
  #parts: Part[] = []
  #whole: Part | undefined
  rows = 0

  /** @param widths bytes of a row in each column */
  constructor(widths: readonly number[]) {
    this.#widths = widths
    this.#rowBytes = widths.reduce((sum, width) => sum + width, 0)
  }

  /** Copies `count` rows out of a buffer, in which a column follows the other. */
  add(bytes: Uint8Array, count: number): void {
    const crossing = { bytes, room: count, rows: 0 }
    for (let done = 0; done < count; ) {
      let last = this.#parts[this.#parts.length - 1]
      if (last === undefined) {
        // All of most results, and as they are.
        last = this.#part(count)
        last.bytes.set(bytes.subarray(0, last.bytes.length))
        last.rows = done = count
        this.#parts.push(last)
        continue
      }
      if (last.rows === last.room) {
        last = this.#part(Math.ceil(PART / this.#rowBytes))
        this.#parts.push(last)
      }
      crossing.rows = Math.min(count - done, last.room - last.rows)
      this.#copy(crossing, done, last)
      done += crossing.rows
    }
    this.rows += count
  }

  /** True when nothing is left to {@link join}, as with most results. */
  get whole(): boolean {
    return this.#whole === undefined ? this.#parts.length < 2 : this.#parts.length === 0
  }

  /** Puts the next part to those before it; true when nothing is left. No more rows may be added. */
  join(): boolean {
    if (this.whole) return true
    this.#whole ??= this.#part(this.rows)
    const part = this.#parts.shift() as Part
    this.#copy(part, 0, this.#whole)
    return this.whole
  }

  /** The columns of the first rows, once the table is whole. The first begins where a u64 may. */
  columns(rows = this.rows): [Uint8Array, ...Uint8Array[]] {
    const { bytes, room } = this.#whole ?? this.#parts[0] ?? this.#part(0)
    let at = 0
    const columns = this.#widths.map((width) => {
      const column = bytes.subarray(at, at + rows * width)
      at += room * width
      return column
    })
    return columns as [Uint8Array, ...Uint8Array[]]
  }

  #part(room: number): Part {
    // Not zeroed: what is not written is not shown.
    const { buffer } = Buffer.allocUnsafeSlow(room * this.#rowBytes)
    return { bytes: new Uint8Array(buffer), room, rows: 0 }
  }

  /** Copies the rows of `from` that begin at its row `start` to the end of `to`. */
  #copy(from: Part, start: number, to: Part): void {
    let source = 0
    let target = 0
    for (const width of this.#widths) {
      const at = source + start * width
      to.bytes.set(from.bytes.subarray(at, at + from.rows * width), target + to.rows * width)
      source += from.room * width
      target += to.room * width
    }
    to.rows += from.rows
  }
}

/** A column as u64. */
export function words(column: Uint8Array): BigUint64Array {
  return new BigUint64Array(column.buffer, column.byteOffset, column.length / 8)
}
