import { CloudAppError, type CloudAppErrorInfo } from '../../errors.js'

/** A part of the kernel profile is missing or malformed; `where` says where it was looked for. */
export function profileError(part: string, message: string, info: CloudAppErrorInfo = {}): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_PROFILE', `kernel profile: ${part}: ${message}`, {
    ...info,
    details: { part, ...info.details },
  })
}

/** The guest's data contradict themselves at `address`. */
export function corrupt(what: string, address: bigint, info: CloudAppErrorInfo = {}): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_GUEST_CORRUPT', `${what} at 0x${address.toString(16)}`, { ...info, address })
}
