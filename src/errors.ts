/**
 * Every code this library throws. Stable: a code is never reused for another meaning.
 */
export type CloudAppErrorCode =
  /** An argument has a wrong type, range or shape. */
  | 'ERR_CLOUDAPP_INVALID_ARGUMENT'
  /** An option key this call does not know; the message names the nearest known key. */
  | 'ERR_CLOUDAPP_UNKNOWN_OPTION'
  /** A named thing (VM, symbol, type, finding) does not exist. */
  | 'ERR_CLOUDAPP_NOT_FOUND'
  /** A guest address does not translate; `address` is the address, `details` the level and the entry. */
  | 'ERR_CLOUDAPP_TRANSLATION'
  /** The guest's own data contradict themselves: a list without end, a wild pointer, a malformed table. */
  | 'ERR_CLOUDAPP_GUEST_CORRUPT'
  /** No kernel profile can be made; `details` say which part is missing and where it was looked for. */
  | 'ERR_CLOUDAPP_PROFILE'
  /** A source of guest memory can not be opened or has gone. */
  | 'ERR_CLOUDAPP_SOURCE'
  /** A stated limit was reached; `details` name it. */
  | 'ERR_CLOUDAPP_LIMIT'
  /** The right is not held; `details` say what was missing and what is held. */
  | 'ERR_CLOUDAPP_DENIED'
  /** The capability was revoked by its owner. */
  | 'ERR_CLOUDAPP_REVOKED'
  /** The capability is past its time. */
  | 'ERR_CLOUDAPP_EXPIRED'
  /** A token is malformed, forged, or for another VM or broker. */
  | 'ERR_CLOUDAPP_TOKEN'
  /** Proof of possession failed: a wrong key, a replay, or another channel. */
  | 'ERR_CLOUDAPP_PROOF'
  /** The audit log can not be written, or does not verify. */
  | 'ERR_CLOUDAPP_AUDIT'
  /** The store of findings is damaged, locked by another process, full, or can not be opened. */
  | 'ERR_CLOUDAPP_STORE'
  /** The peer broke the wire protocol. */
  | 'ERR_CLOUDAPP_PROTOCOL'
  /** The handle, or a parent of it, is closed. */
  | 'ERR_CLOUDAPP_CLOSED'
  /** The caller's AbortSignal fired. */
  | 'ERR_CLOUDAPP_ABORTED'
  /** The peer or a process did not answer in time. */
  | 'ERR_CLOUDAPP_TIMEOUT'
  /** The host, guest or build can not do this; the message says what it lacks. */
  | 'ERR_CLOUDAPP_UNSUPPORTED'
  /** The native library is missing, of another ABI version, or failed. */
  | 'ERR_CLOUDAPP_NATIVE'

/** What an error is about, for programs. All values survive the wire. */
export interface CloudAppErrorInfo {
  /** The guest address it is about (virtual or physical, see the message). */
  address?: bigint
  /** The right it is about. */
  right?: string
  /** The VM it is about, by name or uuid. */
  vm?: string
  /** Further facts, by name. */
  details?: Readonly<Record<string, string | number | bigint | boolean | readonly string[]>>
  cause?: unknown
}

// Two copies of this package in one process still recognise each other's errors.
const brand = Symbol.for('@cloudapp/sdk/error')

/**
 * The one error class of this library. Match on {@link CloudAppError.code}, not on the message.
 */
export class CloudAppError extends Error {
  readonly code: CloudAppErrorCode
  readonly address?: bigint
  readonly right?: string
  readonly vm?: string
  readonly details?: NonNullable<CloudAppErrorInfo['details']>

  constructor(code: CloudAppErrorCode, message: string, info: CloudAppErrorInfo = {}) {
    super(message, info.cause === undefined ? undefined : { cause: info.cause })
    this.name = 'CloudAppError'
    this.code = code
    if (info.address !== undefined) this.address = info.address
    if (info.right !== undefined) this.right = info.right
    if (info.vm !== undefined) this.vm = info.vm
    if (info.details !== undefined) this.details = info.details
    Object.defineProperty(this, brand, { value: true })
  }

  /** True for a CloudAppError of any copy of this package. */
  static is(value: unknown, code?: CloudAppErrorCode): value is CloudAppError {
    if (typeof value !== 'object' || value === null || !(brand in value)) return false
    return code === undefined || (value as unknown as CloudAppError).code === code
  }
}
