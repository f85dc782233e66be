/**
 * What goes over the two pipes between the process with rights and the parser: frames of a 32-bit little-endian length
 * (of what follows), a type byte, and a body.
 */
export const Frame = {
  /** To the parser: a ParseJob as JSON. First. */
  Job: 1,
  /** To the parser: the bytes asked for. */
  Data: 2,
  /** From the parser: `{ uid }` as JSON, once its rights are gone. First. */
  Hello: 16,
  /** From the parser: position (u32) and length (u32) of image bytes it wants. */
  Read: 17,
  /** From the parser: a ParsedImage as JSON. */
  Image: 18,
  /** From the parser: the sections. */
  Symbols: 19,
  Types: 20,
  /** From the parser: `{ part, message }` as JSON. Last. */
  Failed: 21,
  /** From the parser: it is done. Last. */
  Done: 22,
} as const

export const FRAME_HEADER = 5

/** A frame's length and type bytes; the body follows. */
export function frameHeader(type: number, length: number): Buffer {
  const header = Buffer.alloc(FRAME_HEADER)
  header.writeUInt32LE(length + 1)
  header[4] = type
  return header
}

/** Bounds the parent holds the parser to. */
export const PARSER_LIMITS = {
  /** Bytes of image in all, and reads. */
  readBytes: 192 * 1024 * 1024,
  reads: 4096,
  /** Bytes at once. */
  readLength: 4 * 1024 * 1024,
  /** Bytes of a JSON answer, and of a section. */
  json: 1024 * 1024,
  section: 96 * 1024 * 1024,
  /** MiB of JavaScript heap of the parser. */
  heap: 256,
  /** Milliseconds. */
  deadline: 30_000,
} as const
