import { channel as diagnostics } from 'node:diagnostics_channel'
import { CloudAppError, type CloudAppErrorCode, type CloudAppErrorInfo } from '../errors.js'

/** What one error may carry over the wire. */
const MESSAGE = 2000
const WORD = 256
const DETAILS = 32
const LIST = 64

const failures = diagnostics('cloudapp.session.failure')

/**
 * The form in which an error leaves this process: code, message and the facts of a {@link CloudAppError}, never its stack or
 * its cause. Anything else may hold paths or memory of ours: it leaves as its class alone, and in full on the
 * diagnostics channel `cloudapp.session.failure`.
 */
export function errorForPeer(error: Error): Error {
  let told: Error & Record<string, unknown>
  if (CloudAppError.is(error)) {
    told = new Error(error.message.slice(0, MESSAGE)) as typeof told
    told.code = error.code
    if (error.address !== undefined) told.address = error.address
    if (error.right !== undefined) told.right = error.right
    if (error.vm !== undefined) told.vm = error.vm
    if (error.details !== undefined) told.details = plain(error.details)
  } else {
    if (failures.hasSubscribers) failures.publish({ error })
    told = new Error(`The call failed in the peer (${error.name.slice(0, WORD)})`) as typeof told
    told.code = 'ERR_CLOUDAPP_PROTOCOL'
  }
  told.name = 'CloudAppError'
  // capnweb sends a stack if the substituted error has one.
  told.stack = ''
  return told
}

/**
 * The {@link CloudAppError} a peer meant, with everything it says bounded. A CloudAppError of this process is itself.
 *
 * @param ended why the session ended, if it did: what an error that says nothing of ours stands for.
 */
export function errorFromPeer(error: unknown, ended?: CloudAppError): CloudAppError {
  if (CloudAppError.is(error)) return error
  const told = (typeof error === 'object' && error !== null ? error : {}) as Record<string, unknown>
  const message = typeof told.message === 'string' ? told.message.slice(0, MESSAGE) : 'The call failed'
  if (typeof told.code !== 'string' || !/^ERR_CLOUDAPP_[A-Z_]{1,40}$/.test(told.code)) {
    // capnweb's own words, of this side: a disposed stub, a value that can not be sent.
    return ended ?? new CloudAppError('ERR_CLOUDAPP_PROTOCOL', message, { cause: error })
  }
  const info: CloudAppErrorInfo = {}
  if (typeof told.address === 'bigint') info.address = BigInt.asUintN(64, told.address)
  if (typeof told.right === 'string') info.right = told.right.slice(0, WORD)
  if (typeof told.vm === 'string') info.vm = told.vm.slice(0, WORD)
  if (typeof told.details === 'object' && told.details !== null) info.details = plain(told.details)
  return new CloudAppError(told.code as CloudAppErrorCode, message, info)
}

function plain(details: object): NonNullable<CloudAppErrorInfo['details']> {
  const result: Record<string, string | number | bigint | boolean | readonly string[]> = {}
  for (const [key, value] of Object.entries(details).slice(0, DETAILS)) {
    const name = key.slice(0, 64)
    // An assignment would make a peer's list the prototype.
    if (name === '__proto__') continue
    if (typeof value === 'string') result[name] = value.slice(0, MESSAGE)
    else if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean') result[name] = value
    else if (Array.isArray(value)) {
      result[name] = value
        .filter((word) => typeof word === 'string')
        .slice(0, LIST)
        .map((word) => word.slice(0, WORD))
    }
  }
  return result
}
