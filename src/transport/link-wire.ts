import { CloudAppError } from '../errors.js'

/** What frames say: docs/interface.md, "Streams". */
export const Kind = { Open: 1, Data: 2, Credit: 3, End: 4, Refuse: 5 } as const
export type Kind = (typeof Kind)[keyof typeof Kind]

/** Why a stream was refused. */
export const TOO_MANY = 1
export const FINISHING = 2

/** Bytes before each frame's payload: u32 stream, u8 kind, u24 length, little-endian. */
export const HEADER = 8

/** With its header it makes 64 KiB, so that a frame is one piece of a ring of that size. */
export const MOST_PAYLOAD = 64 * 1024 - HEADER

/** `streams` and the newest version its sender speaks. */
const NAME = 'streams'
const VERSION = 1

export function preface(): Uint8Array {
  return new Uint8Array([...NAME].map((letter) => letter.charCodeAt(0)).concat(VERSION))
}

/** One frame; a word after its header if one is given. */
export function frame(id: number, kind: Kind, payload?: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEADER + (payload?.length ?? 0))
  putHeader(bytes, id, kind)
  if (payload !== undefined) bytes.set(payload, HEADER)
  return bytes
}

/** Writes the header of a frame whose payload is all that follows it in `bytes`. */
export function putHeader(bytes: Uint8Array, id: number, kind: Kind): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset)
  view.setUint32(0, id, true)
  view.setUint32(4, kind | ((bytes.length - HEADER) << 8), true)
}

export function word(value: number): Uint8Array {
  const bytes = new Uint8Array(4)
  new DataView(bytes.buffer).setUint32(0, value, true)
  return bytes
}

/** A frame, or the next part of a data frame's payload. */
export interface Part {
  readonly id: number
  readonly kind: Kind
  readonly payload: Uint8Array
}

/** Lengths of payloads: least and most. */
const LENGTHS: Readonly<Record<number, readonly [number, number]>> = {
  [Kind.Open]: [0, 0],
  [Kind.Data]: [1, MOST_PAYLOAD],
  [Kind.Credit]: [4, 4],
  [Kind.End]: [0, 0],
  [Kind.Refuse]: [1, 1],
}

/** Cuts what comes into frames. What a frame may say to whom, its receiver knows. */
export class LinkReader {
  /** What is gathered: the preface, a header, or the payload of anything but data. */
  #head = new Uint8Array(HEADER)
  #have = 0
  #begun = false
  #current: { readonly id: number; readonly kind: Kind; left: number } | undefined;

  /** @throws CloudAppError `ERR_CLOUDAPP_PROTOCOL` at the first byte that can not be */
  *push(chunk: Uint8Array): Generator<Part> {
    for (let at = 0; at < chunk.length; ) {
      const current = this.#current
      if (current?.kind === Kind.Data) {
        const payload = chunk.subarray(at, at + current.left)
        at += payload.length
        current.left -= payload.length
        if (current.left === 0) this.#current = undefined
        yield { id: current.id, kind: current.kind, payload }
        continue
      }
      const wanted = current?.left ?? HEADER
      const piece = chunk.subarray(at, at + wanted - this.#have)
      this.#head.set(piece, this.#have)
      at += piece.length
      this.#have += piece.length
      if (this.#have < wanted) return
      this.#have = 0
      if (current !== undefined) {
        this.#current = undefined
        yield { id: current.id, kind: current.kind, payload: this.#head.slice(0, wanted) }
      } else if (this.#begun) {
        this.#current = this.#header()
        if (this.#current.left > 0) continue
        const { id, kind } = this.#current
        this.#current = undefined
        yield { id, kind, payload: NOTHING }
      } else this.#preface()
    }
  }

  #preface(): void {
    this.#begun = true
    const name = String.fromCharCode(...this.#head.subarray(0, NAME.length))
    // Both speak the lower of the two versions, and there is but one.
    if (name !== NAME || this.#head[NAME.length] === 0) throw protocol('does not begin as one of streams does')
  }

  #header(): { readonly id: number; readonly kind: Kind; left: number } {
    const view = new DataView(this.#head.buffer)
    const id = view.getUint32(0, true)
    const kind = this.#head[4] as number as Kind
    const length = view.getUint32(4, true) >>> 8
    const [least, most] = LENGTHS[kind] ?? [0, -1]
    if (id === 0 || length < least || length > most) {
      throw protocol(`has a frame that can not be: stream ${id}, kind ${kind}, ${length} bytes`)
    }
    return { id, kind, left: length }
  }
}

const NOTHING = new Uint8Array(0)

export function protocol(what: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `The peer's link ${what}`)
}
