import { CloudAppError } from '../../errors.js'
import { LIMITS } from '../../vmi/memory.js'

/** Throws ERR_CLOUDAPP_LIMIT if `value` is past the bound `name` of the memory seam. */
export function within(name: keyof typeof LIMITS, value: number): void {
  if (value <= LIMITS[name]) return
  throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `${value} passes the limit of ${LIMITS[name]} (${name})`, {
    details: { limit: name, value, most: LIMITS[name] },
  })
}
