import { checkLimit } from '../../vmi/local-check.js'
import type {
  DigestRequest,
  DigestResult,
  PagesRequest,
  PagesResult,
  SearchRequest,
  SearchResult,
} from '../../vmi/memory.js'
import { ByteWriter, decodeMessage, decodeWith, inTable, malformed } from './bytes.js'

/** Bytes of a page as digests count them. */
const PAGE = 4096n

export function encodePages(request: PagesRequest): Uint8Array {
  checkLimit('pagesRuns', request.limit)
  const writer = new ByteWriter(40)
  writer.u64(BigInt.asUintN(64, request.space))
  writer.u64(BigInt.asUintN(64, request.start))
  writer.end(request.end)
  writer.u8(request.want ?? 0)
  writer.u32(request.limit)
  return writer.done()
}

export function decodePages(message: unknown): PagesRequest {
  return decodeWith(message, (reader) => {
    const request = {
      space: reader.u64(),
      start: reader.u64(),
      end: reader.end(),
      want: reader.u8(),
      limit: reader.u32(),
    }
    checkLimit('pagesRuns', request.limit)
    return request
  })
}

export function encodePagesResult(result: PagesResult): Uint8Array[] {
  const columns = [result.virtual, result.physical, result.sizes, result.flags]
  const writer = new ByteWriter(columns.reduce((size, column) => size + inTable(column), 16))
  writer.u8(result.consistent ? 1 : 0)
  writer.u8(result.end === 'limit' ? 1 : 0)
  writer.end(result.next)
  writer.u32(result.runs)
  for (const column of columns) writer.large(column)
  return writer.message()
}

export function decodePagesResult(message: unknown, request: PagesRequest): PagesResult {
  return decodeMessage(message, (reader) => {
    const consistent = reader.flag()
    const end = reader.flag() ? 'limit' : 'complete'
    const next = reader.end()
    const runs = reader.u32()
    if (runs > request.limit) throw malformed('more runs than asked')
    const virtual = reader.largeU64s(runs)
    const physical = reader.largeU64s(runs)
    const sizes = reader.largeU64s(runs)
    return { runs, virtual, physical, sizes, flags: reader.large(runs), end, next, consistent }
  })
}

export function encodeSearch(request: SearchRequest): Uint8Array {
  checkLimit('patterns', request.patterns.length)
  checkLimit('matches', request.limit)
  const writer = new ByteWriter(128)
  writer.u64(BigInt.asUintN(64, request.space))
  writer.u64(BigInt.asUintN(64, request.start))
  writer.end(request.end)
  writer.u32(request.align ?? 1)
  writer.u32(request.offset ?? 0)
  writer.u32(request.limit)
  writer.u8(request.patterns.length)
  for (const pattern of request.patterns) {
    checkLimit('patternLength', pattern.length)
    writer.u32(pattern.length)
    writer.bytes(pattern)
  }
  return writer.done()
}

export function decodeSearch(message: unknown): SearchRequest {
  return decodeWith(message, (reader) => {
    const space = reader.u64()
    const start = reader.u64()
    const end = reader.end()
    const align = reader.u32()
    const offset = reader.u32()
    const limit = reader.u32()
    checkLimit('matches', limit)
    const count = reader.u8()
    checkLimit('patterns', count)
    const patterns: Uint8Array[] = []
    for (let i = 0; i < count; i++) {
      const length = reader.u32()
      checkLimit('patternLength', length)
      patterns.push(reader.bytes(length))
    }
    return { space, start, end, align, offset, limit, patterns }
  })
}

export function encodeSearchResult(result: SearchResult): Uint8Array {
  const writer = new ByteWriter(16 + result.matches.length * 9)
  writer.u8(result.consistent ? 1 : 0)
  writer.u8(result.end === 'limit' ? 1 : 0)
  writer.end(result.next)
  writer.u32(result.matches.length)
  for (const { pattern, at } of result.matches) {
    writer.u8(pattern)
    writer.u64(at)
  }
  return writer.done()
}

export function decodeSearchResult(message: unknown, request: SearchRequest): SearchResult {
  return decodeWith(message, (reader) => {
    const consistent = reader.flag()
    const end = reader.flag() ? 'limit' : 'complete'
    const next = reader.end()
    const count = reader.u32()
    if (count > request.limit) throw malformed('more matches than asked')
    const matches: { pattern: number; at: bigint }[] = []
    for (let i = 0; i < count; i++) {
      const pattern = reader.u8()
      if (pattern >= request.patterns.length) throw malformed('a match of no pattern')
      matches.push({ pattern, at: reader.u64() })
    }
    return { matches, end, next, consistent }
  })
}

export function encodeDigest(request: DigestRequest): Uint8Array {
  pagesOf(request)
  const writer = new ByteWriter(32)
  writer.u64(BigInt.asUintN(64, request.space))
  writer.u64(BigInt.asUintN(64, request.start))
  writer.end(request.end)
  return writer.done()
}

export function decodeDigest(message: unknown): { readonly request: DigestRequest; readonly pages: number } {
  return decodeWith(message, (reader) => {
    const request = { space: reader.u64(), start: reader.u64(), end: reader.end() }
    return { request, pages: pagesOf(request) }
  })
}

function pagesOf(request: DigestRequest): number {
  const pages = request.end > request.start ? Number((request.end - request.start) / PAGE) : 0
  checkLimit('digestPages', pages)
  return pages
}

export function encodeDigestResult(result: DigestResult): Uint8Array[] {
  const writer = new ByteWriter(8 + inTable(result.digests) + inTable(result.present))
  writer.u8(result.consistent ? 1 : 0)
  writer.u32(result.pages)
  writer.large(result.digests)
  writer.large(result.present)
  return writer.message()
}

export function decodeDigestResult(message: unknown, request: DigestRequest): DigestResult {
  return decodeMessage(message, (reader) => {
    const consistent = reader.flag()
    const pages = reader.u32()
    if (pages > pagesOf(request)) throw malformed('more pages than asked')
    return { pages, digests: reader.large(pages * 32), present: reader.large(pages), consistent }
  })
}
