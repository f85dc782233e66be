import { CloudAppError } from '../../errors.js'
import { type BytesColumn, ColumnBatch } from '../../vmi/events/batch.js'
import type { CompiledProgram } from '../../vmi/events/compile.js'
import { BATCH_EVENTS } from '../../vmi/events/source.js'

/** Bytes before the columns: count, lost. */
const HEAD = 16

/**
 * A batch as bytes, little-endian: u64 count, f64 lost, then one after the other, for all events each: time, serial, cr3, rip
 * and the captures of one word (u64), the bytes of each capture of bytes (rounded up to 8 an event), vcpu (u32), and of each
 * capture of bytes the lengths and the reasons (u32). Both sides know the program, and with it the columns.
 */
export function encodeBatch({ parts }: ColumnBatch): Uint8Array {
  const { count, dropped, fixed, words, bytes } = parts
  const { time, serial, cr3, rip, vcpu } = fixed
  const columns: readonly (BigUint64Array | Uint32Array | Uint8Array)[] = [
    ...[time, serial, cr3, rip, ...words.map(([, values]) => values)],
    ...bytes.map(({ data }) => data),
    vcpu,
    ...bytes.flatMap(({ lengths, reasons }) => [lengths, reasons]),
  ]
  const message = new Uint8Array(HEAD + columns.reduce((size, column) => size + column.byteLength, 0))
  const view = new DataView(message.buffer)
  view.setBigUint64(0, BigInt(count), true)
  view.setFloat64(8, dropped, true)
  let at = HEAD
  for (const column of columns) {
    message.set(new Uint8Array(column.buffer, column.byteOffset, column.byteLength), at)
    at += column.byteLength
  }
  return message
}

/** @throws CloudAppError `ERR_CLOUDAPP_PROTOCOL` for what no broker would send for this program */
export function decodeBatch(message: unknown, program: CompiledProgram): ColumnBatch {
  if (!(message instanceof Uint8Array) || message.length < HEAD) throw malformed('it is cut short')
  // Copied only where the columns would not be aligned.
  const bytes = message.byteOffset % 8 === 0 ? message : Uint8Array.from(message)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const count = Number(view.getBigUint64(0, true))
  const dropped = view.getFloat64(8, true)
  if (count < 1 || count > BATCH_EVENTS || !Number.isSafeInteger(dropped) || dropped < 0) {
    throw malformed('its counts are impossible')
  }
  const sizes = program.captures.map((capture) => ({ ...capture, size: Math.ceil((capture.bytes ?? 0) / 8) * 8 }))
  const ofBytes = sizes.filter((capture) => capture.bytes !== undefined)
  const ofWords = sizes.filter((capture) => capture.bytes === undefined)
  const size = 4 * 8 + ofWords.length * 8 + 4 + ofBytes.reduce((sum, capture) => sum + capture.size + 8, 0)
  if (bytes.length !== HEAD + count * size) throw malformed('its columns have a wrong length')
  let at = bytes.byteOffset + HEAD
  const take = (each: number) => {
    const from = at
    at += each * count
    return from
  }
  const { buffer } = bytes
  const u64 = () => new BigUint64Array(buffer, take(8), count)
  const u32 = () => new Uint32Array(buffer, take(4), count)
  const [time, serial, cr3, rip] = [u64(), u64(), u64(), u64()]
  const words = ofWords.map(({ name }) => [name, u64()] as const)
  const data = ofBytes.map((capture) => new Uint8Array(buffer, take(capture.size), count * capture.size))
  const vcpu = u32()
  const captured = ofBytes.map((capture, i): BytesColumn => {
    const [lengths, reasons] = [u32(), u32()]
    return { name: capture.name, size: capture.size, lengths, reasons, data: data[i] as Uint8Array }
  })
  return new ColumnBatch({ count, dropped, fixed: { time, vcpu, serial, cr3, rip }, words, bytes: captured })
}

function malformed(what: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `A malformed batch of events: ${what}`)
}
