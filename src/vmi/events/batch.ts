import { CloudAppError } from '../../errors.js'
import type { FaultReason } from '../memory.js'
import type { CompiledProgram } from './compile.js'
import type { Captures } from './program.js'
import { BATCH_EVENTS, type EventBatch, type FixedColumns } from './source.js'

/** enum ca_reason of cloudapp.h. */
const REASONS: readonly (FaultReason | undefined)[] = [
  undefined,
  'not-present',
  'non-canonical',
  'reserved-bit',
  'outside-ram',
  'source',
  'denied',
]

/** A column of captured bytes: `size` bytes an event, and of each how many there are and why not all. */
export interface BytesColumn {
  readonly name: string
  readonly size: number
  readonly lengths: Uint32Array
  readonly reasons: Uint32Array
  readonly data: Uint8Array
}

/** What a batch is made of. */
export interface BatchParts {
  readonly count: number
  readonly dropped: number
  readonly fixed: FixedColumns
  readonly words: readonly (readonly [name: string, values: BigUint64Array])[]
  readonly bytes: readonly BytesColumn[]
}

/** A batch over its columns. */
export class ColumnBatch implements EventBatch {
  readonly count: number
  readonly dropped: number
  readonly columns: EventBatch['columns']
  readonly parts: BatchParts

  constructor(parts: BatchParts) {
    this.parts = parts
    this.count = parts.count
    this.dropped = parts.dropped
    this.columns = { ...parts.fixed, ...Object.fromEntries(parts.words) }
  }

  bytes(name: string, row: number): Uint8Array {
    const { size, lengths, data } = this.#column(name, row)
    return data.subarray(row * size, row * size + Math.min(lengths[row] ?? 0, size))
  }

  text(name: string, row: number): string {
    const bytes = this.bytes(name, row)
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8')
  }

  fault(name: string, row: number): FaultReason | undefined {
    return REASONS[this.#column(name, row).reasons[row] ?? 0]
  }

  #column(name: string, row: number): BytesColumn {
    const column = this.parts.bytes.find((candidate) => candidate.name === name)
    if (column === undefined) throw misuse(`the program captures no bytes as '${String(name).slice(0, 64)}'`)
    if (!Number.isSafeInteger(row) || row < 0 || row >= this.count)
      throw misuse(`the batch has no event ${String(row)}`)
    return column
  }
}

/** Typed for the program it belongs to. */
export const asBatch = <C extends Captures>(batch: ColumnBatch): EventBatch<C> => batch as unknown as EventBatch<C>

/** Of one batch, about: what crosses a wire in one message. */
const BATCH_BYTES = 1024 * 1024

/** A column of one word: where it is in a record, in u32, and its values as pairs of u32. */
interface WordRoom {
  readonly at: number
  readonly to: Uint32Array<ArrayBuffer>
}

/** A column of bytes: `words` u32 an event. */
interface BytesRoom extends WordRoom {
  readonly words: number
  readonly lengths: Uint32Array
  readonly reasons: Uint32Array
}

/** Room for events of one program, column by column. Records are copied in as they lie in the ring. */
export class BatchBuilder {
  readonly #program: CompiledProgram
  readonly capacity: number
  count = 0
  readonly #vcpu: Uint32Array
  readonly #words: readonly WordRoom[]
  readonly #bytes: readonly BytesRoom[]

  constructor(program: CompiledProgram, capacity: number) {
    this.#program = program
    this.capacity = Math.max(1, Math.min(capacity, BATCH_EVENTS, Math.floor(BATCH_BYTES / eventBytes(program))))
    const room = this.capacity
    const word = (at: number) => ({ at: at * 2, to: new Uint32Array(room * 2) })
    this.#vcpu = new Uint32Array(room)
    this.#words = [
      ...[TIME, SERIAL, CR3, RIP].map(word),
      ...program.captures.filter(({ bytes }) => bytes === undefined).map((capture) => word(capture.word)),
    ]
    this.#bytes = program.captures.flatMap(({ word: at, bytes }) => {
      if (bytes === undefined) return []
      const words = Math.ceil(bytes / 8) * 2
      return {
        at: at * 2,
        words,
        lengths: new Uint32Array(room),
        reasons: new Uint32Array(room),
        to: new Uint32Array(room * words),
      }
    })
  }

  /** Takes `count` records that lie one after the other from the u32 index `from` on; there must be room. */
  append(records: Uint32Array, from: number, count: number): void {
    const stride = this.#program.recordWords * 2
    const first = this.count
    // Column by column: each loop is short, and reads what the one before has in the cache.
    // Words go as halves: a bigint each would be an object each.
    for (const { at, to } of this.#words) {
      for (let i = 0, read = from + at, write = first * 2; i < count; i++, read += stride, write += 2) {
        to[write] = records[read] as number
        to[write + 1] = records[read + 1] as number
      }
    }
    for (let i = 0, read = from + VCPU * 2; i < count; i++, read += stride)
      this.#vcpu[first + i] = records[read] as number
    for (const { at, words, lengths, reasons, to } of this.#bytes) {
      for (let i = 0, read = from + at; i < count; i++, read += stride) {
        lengths[first + i] = records[read] as number
        reasons[first + i] = records[read + 1] as number
        const write = (first + i) * words
        for (let w = 0; w < words; w++) to[write + w] = records[read + 2 + w] as number
      }
    }
    this.count += count
  }

  /** Of the last event in it. */
  get lastSerial(): number {
    const { to } = this.#words[1] as WordRoom
    const at = (this.count - 1) * 2
    return (to[at] ?? 0) + (to[at + 1] ?? 0) * 2 ** 32
  }

  /** The events so far; the builder is done with. */
  finish(dropped: number): ColumnBatch {
    const { count } = this
    const column = (index: number) => new BigUint64Array((this.#words[index] as WordRoom).to.buffer, 0, count)
    const fixed: FixedColumns = {
      time: column(0),
      vcpu: this.#vcpu.subarray(0, count),
      serial: column(1),
      cr3: column(2),
      rip: column(3),
    }
    const captures = this.#program.captures
    const words = captures
      .filter(({ bytes }) => bytes === undefined)
      .map(({ name }, i) => [name, column(4 + i)] as const)
    const bytes = captures
      .filter((capture) => capture.bytes !== undefined)
      .map(({ name }, i): BytesColumn => {
        const { words: size, lengths, reasons, to } = this.#bytes[i] as BytesRoom
        return {
          name,
          size: size * 4,
          lengths: lengths.subarray(0, count),
          reasons: reasons.subarray(0, count),
          data: new Uint8Array(to.buffer, 0, count * size * 4),
        }
      })
    return new ColumnBatch({ count, dropped, fixed, words, bytes })
  }
}

// enum ca_record: words of a record.
const TIME = 1
const VCPU = 2
const SERIAL = 3
const CR3 = 4
const RIP = 5

/** Bytes an event of this program takes while it is kept. */
export const eventBytes = (program: CompiledProgram): number => program.recordWords * 8

function misuse(message: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', message)
}
