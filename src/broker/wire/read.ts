import { checkLimit } from '../../vmi/local-check.js'
import {
  type Fault,
  type FaultReason,
  LIMITS,
  type ReadRequest,
  type ReadResult,
  type WriteRequest,
  type WriteResult,
} from '../../vmi/memory.js'
import { type ByteReader, ByteWriter, decodeMessage, decodeWith, inTable, malformed } from './bytes.js'

const REASONS: readonly FaultReason[] = [
  'not-present',
  'non-canonical',
  'reserved-bit',
  'outside-ram',
  'source',
  'denied',
]

/** Bytes of a fault on the wire. */
const FAULT = 18

export function writeFault(writer: ByteWriter, fault: Fault): void {
  writer.u8(REASONS.indexOf(fault.reason))
  writer.u8(fault.level)
  writer.u64(fault.address)
  writer.u64(fault.entry)
}

export function readFault(reader: ByteReader): Fault {
  const reason = REASONS[reader.u8()]
  const level = reader.u8()
  if (reason === undefined || level > 5) throw malformed('an unknown fault')
  return { reason, address: reader.u64(), level, entry: reader.u64() }
}

/**
 * A batch of reads: count, then for each space, length, number of addresses, addresses.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_LIMIT` for a batch past the seam's limits.
 */
export function encodeReads(requests: readonly ReadRequest[]): Uint8Array {
  checkLimit('batch', requests.length)
  const writer = new ByteWriter(4 + requests.length * 24)
  writer.u32(requests.length)
  let total = 0
  for (const { space, at, length } of requests) {
    writer.u64(BigInt.asUintN(64, space))
    writer.u32(length)
    if (typeof at === 'bigint') {
      writer.u32(1)
      writer.u64(BigInt.asUintN(64, at))
      total += length
    } else {
      if (at.length > LIMITS.addresses) checkLimit('addresses', at.length)
      writer.u32(at.length)
      writer.u64s(at)
      total += length * at.length
    }
    if (length > LIMITS.readLength) checkLimit('readLength', length)
  }
  checkLimit('resultBytes', total)
  return writer.done()
}

/** The requests, and how many bytes their results have. @throws CloudAppError `ERR_CLOUDAPP_PROTOCOL`, `ERR_CLOUDAPP_LIMIT` */
export function decodeReads(message: unknown): { readonly requests: ReadRequest[]; readonly resultBytes: number } {
  return decodeWith(message, (reader) => {
    const count = reader.u32()
    checkLimit('batch', count)
    let resultBytes = 0
    const requests: ReadRequest[] = []
    for (let i = 0; i < count; i++) {
      const space = reader.u64()
      const length = reader.u32()
      const addresses = reader.u32()
      // Which limit it is takes long to look up for each of a batch.
      if (length > LIMITS.readLength) checkLimit('readLength', length)
      if (addresses > LIMITS.addresses) checkLimit('addresses', addresses)
      resultBytes += length * addresses
      if (resultBytes > LIMITS.resultBytes) checkLimit('resultBytes', resultBytes)
      requests.push({ space, at: addresses === 1 ? reader.u64() : reader.u64s(addresses), length })
    }
    return { requests, resultBytes }
  })
}

/** A table of the results, and the long ones beside it. */
export function encodeReadResults(results: readonly ReadResult[]): Uint8Array[] {
  let size = 4
  for (const { bytes, faults } of results) size += 9 + inTable(bytes) + faults.length * (FAULT + 4)
  const writer = new ByteWriter(size)
  writer.u32(results.length)
  for (const { bytes, faults, consistent } of results) {
    writer.u8(consistent ? 1 : 0)
    writer.u32(bytes.length)
    writer.u32(faults.length)
    for (const fault of faults) {
      writer.u32(fault.index)
      writeFault(writer, fault)
    }
    writer.large(bytes)
  }
  return writer.message()
}

/** The results, in the shape of what was asked. @throws CloudAppError `ERR_CLOUDAPP_PROTOCOL` */
export function decodeReadResults(message: unknown, requests: readonly ReadRequest[]): ReadResult[] {
  return decodeMessage(message, (reader) => {
    if (reader.u32() !== requests.length) throw malformed('not as many results as requests')
    return requests.map(({ at, length }) => {
      const addresses = typeof at === 'bigint' ? 1 : at.length
      const consistent = reader.flag()
      const size = reader.u32()
      const faultCount = reader.u32()
      if (size !== addresses * length || faultCount > addresses) throw malformed('a result of a wrong size')
      const faults: (Fault & { readonly index: number })[] = []
      for (let i = 0; i < faultCount; i++) {
        const index = reader.u32()
        if (index >= addresses) throw malformed('a fault at no address')
        faults.push({ index, ...readFault(reader) })
      }
      return { bytes: reader.large(size), faults, consistent }
    })
  })
}

/** A batch of writes: count, then for each space, address, length, bytes. @throws CloudAppError `ERR_CLOUDAPP_LIMIT` */
export function encodeWrites(requests: readonly WriteRequest[]): Uint8Array {
  checkLimit('batch', requests.length)
  let total = 0
  for (const { bytes } of requests) {
    checkLimit('readLength', bytes.length)
    total += bytes.length
  }
  checkLimit('readLength', total)
  const writer = new ByteWriter(4 + requests.length * 20 + total)
  writer.u32(requests.length)
  for (const { space, at, bytes } of requests) {
    writer.u64(BigInt.asUintN(64, space))
    writer.u64(BigInt.asUintN(64, at))
    writer.u32(bytes.length)
    writer.bytes(bytes)
  }
  return writer.done()
}

export function decodeWrites(message: unknown): WriteRequest[] {
  return decodeWith(message, (reader) => {
    const count = reader.u32()
    checkLimit('batch', count)
    const requests: WriteRequest[] = []
    for (let i = 0; i < count; i++) {
      requests.push({ space: reader.u64(), at: reader.u64(), bytes: reader.bytes(reader.u32()) })
    }
    return requests
  })
}

export function encodeWriteResults(results: readonly WriteResult[]): Uint8Array {
  const writer = new ByteWriter(4 + results.length * (5 + FAULT))
  writer.u32(results.length)
  for (const { written, fault } of results) {
    writer.u32(written)
    writer.u8(fault === undefined ? 0 : 1)
    if (fault !== undefined) writeFault(writer, fault)
  }
  return writer.done()
}

export function decodeWriteResults(message: unknown, requests: readonly WriteRequest[]): WriteResult[] {
  return decodeWith(message, (reader) => {
    if (reader.u32() !== requests.length) throw malformed('not as many results as requests')
    return requests.map(({ bytes }) => {
      const written = reader.u32()
      if (written > bytes.length) throw malformed('more was written than asked')
      return reader.flag() ? { written, fault: readFault(reader) } : { written }
    })
  })
}
