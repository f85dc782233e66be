import { CloudAppError, type CloudAppErrorCode } from '../../errors.js'

/** enum xsd_sockmsg_type, xen/io/xs_wire.h. */
export const XS = {
  DIRECTORY: 1,
  READ: 2,
  GET_PERMS: 3,
  WATCH: 4,
  UNWATCH: 5,
  TRANSACTION_START: 6,
  TRANSACTION_END: 7,
  WRITE: 11,
  MKDIR: 12,
  RM: 13,
  SET_PERMS: 14,
  WATCH_EVENT: 15,
  ERROR: 16,
  IS_DOMAIN_INTRODUCED: 17,
  DIRECTORY_PART: 20,
} as const

/** XENSTORE_PAYLOAD_MAX, XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX. */
export const PAYLOAD_MAX = 4096
const ABSOLUTE_MAX = 3072
const RELATIVE_MAX = 2048

/** struct xsd_sockmsg: type, req_id, tx_id, len, each u32. */
const HEADER = 16

export interface StoreMessage {
  readonly type: number
  readonly request: number
  readonly transaction: number
  readonly body: Uint8Array
}

export function encodeMessage({ type, request, transaction, body }: StoreMessage): Uint8Array {
  const bytes = new Uint8Array(HEADER + body.length)
  const view = new DataView(bytes.buffer)
  for (const [i, word] of [type, request, transaction, body.length].entries()) view.setUint32(4 * i, word, true)
  bytes.set(body, HEADER)
  return bytes
}

/** Cuts a stream of bytes into messages. Holds at most one that is not complete. */
export class MessageReader {
  readonly #buffer = new Uint8Array(HEADER + PAYLOAD_MAX)
  readonly #view = new DataView(this.#buffer.buffer)
  #have = 0

  /** @throws CloudAppError `ERR_CLOUDAPP_PROTOCOL` at a message longer than the protocol allows. */
  push(bytes: Uint8Array): StoreMessage[] {
    const messages: StoreMessage[] = []
    let at = 0
    while (at < bytes.length) {
      const wanted = this.#have < HEADER ? HEADER : HEADER + this.#length()
      const part = bytes.subarray(at, at + wanted - this.#have)
      this.#buffer.set(part, this.#have)
      this.#have += part.length
      at += part.length
      if (this.#have < HEADER || this.#have < HEADER + this.#length()) continue
      const word = (i: number) => this.#view.getUint32(4 * i, true)
      const body = this.#buffer.slice(HEADER, this.#have)
      this.#have = 0
      messages.push({ type: word(0), request: word(1), transaction: word(2), body })
    }
    return messages
  }

  #length(): number {
    const length = this.#view.getUint32(12, true)
    if (length <= PAYLOAD_MAX) return length
    throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `xenstore sent a message of ${length} bytes`, {
      details: { length, limit: PAYLOAD_MAX },
    })
  }
}

/** Strings, each ended by a NUL. */
export function strings(...parts: readonly string[]): Uint8Array {
  return Buffer.from(parts.map((part) => `${part}\0`).join(''))
}

export function splitStrings(body: Uint8Array): string[] {
  const text = Buffer.from(body.buffer, body.byteOffset, body.length).toString('utf8')
  return text.split('\0').slice(0, -1)
}

/**
 * Refuses what xenstored would refuse, and what could mean another key: docs/misc/xenstore.txt has the letters.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT`
 */
export function checkPath(path: string, special = false): string {
  const known = special && (path === '@introduceDomain' || path === '@releaseDomain')
  const limit = path.startsWith?.('/') ? ABSOLUTE_MAX : RELATIVE_MAX
  const fine = typeof path === 'string' && path.length <= limit && /^\/?[-\w]+(?:\/[-\w@]+)*$/.test(path)
  if (fine || known || path === '/') return path
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `'${String(path).slice(0, 100)}' is no path of xenstore`)
}

// struct xsd_errors, xen/io/xs_wire.h, as far as they have a code of their own here.
const CODES: Readonly<Record<string, CloudAppErrorCode>> = {
  ENOENT: 'ERR_CLOUDAPP_NOT_FOUND',
  EACCES: 'ERR_CLOUDAPP_DENIED',
  EPERM: 'ERR_CLOUDAPP_DENIED',
  EINVAL: 'ERR_CLOUDAPP_INVALID_ARGUMENT',
  ENOSPC: 'ERR_CLOUDAPP_LIMIT',
  E2BIG: 'ERR_CLOUDAPP_LIMIT',
  ENOSYS: 'ERR_CLOUDAPP_UNSUPPORTED',
}

/** What an XS_ERROR says, about an operation on a path. */
export function storeError(body: Uint8Array, what: string): CloudAppError {
  const [name = ''] = splitStrings(body)
  const word = /^E[A-Z0-9]{1,15}$/.test(name) ? name : 'an unknown error'
  return new CloudAppError(CODES[word] ?? 'ERR_CLOUDAPP_SOURCE', `xenstore: ${what}: ${word}`, {
    details: { errno: word },
  })
}
