import { checkLimit } from '../../vmi/local-check.js'
import type {
  DigestRequest,
  DigestResult,
  PagesRequest,
  PagesResult,
  SearchRequest,
  SearchResult,
} from '../../vmi/memory.js'
import { ByteWriter, decodeWith, malformed } from './bytes.js'

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

export function encodePagesResult(result: PagesResult): Uint8Array {
  const writer = new ByteWriter(16 + result.runs * 25)
  writer.u8(result.consistent ? 1 : 0)
  writer.u8(result.end === 'limit' ? 1 : 0)
  writer.end(result.next)
  writer.u32(result.runs)
  writer.u64s(result.virtual)
  writer.u64s(result.physical)
  writer.u64s(result.sizes)
  writer.bytes(result.flags)
  return writer.done()
}

export function decodePagesResult(message: unknown, request: PagesRequest): PagesResult {
  return decodeWith(message, (reader) => {
    const consistent = reader.flag()
    const end = reader.flag() ? 'limit' : 'complete'
    const next = reader.end()
    const runs = reader.u32()
    if (runs > request.limit) throw malformed('more runs than asked')
    const virtual = reader.u64s(runs)
    const physical = reader.u64s(runs)
    const sizes = reader.u64s(runs)
    return { runs, virtual, physical, sizes, flags: reader.bytes(runs), end, next, consistent }
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

export function encodeDigestResult(result: DigestResult): Uint8Array {
  const writer = new ByteWriter(8 + result.pages * 33)
  writer.u8(result.consistent ? 1 : 0)
  writer.u32(result.pages)
  writer.bytes(result.digests)
  writer.bytes(result.present)
  return writer.done()
}

export function decodeDigestResult(message: unknown, request: DigestRequest): DigestResult {
  return decodeWith(message, (reader) => {
    const consistent = reader.flag()
    const pages = reader.u32()
    if (pages > pagesOf(request)) throw malformed('more pages than asked')
    return { pages, digests: reader.bytes(pages * 32), present: reader.bytes(pages), consistent }
  })
}
