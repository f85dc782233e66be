import { CloudAppError } from '../../errors.js'
import type { Right } from '../rights.js'

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/** The hexadecimal digits of a uuid. Names in a policy are made of nothing else, so that nothing can be written into it. */
function digits(uuid: string): string {
  if (!UUID.test(uuid)) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `'${uuid.slice(0, 64)}' is no uuid`)
  return uuid.replaceAll('-', '')
}

/** A domain's own type. */
export const typeOf = (uuid: string): string => `ca_${digits(uuid)}_t`

/** The domain's label, for `seclabel` in its xl.cfg(5). */
export const labelOf = (uuid: string): string => `system_u:system_r:${typeOf(uuid)}`

/** Whether a label is one that a policy made here gave a domain; Xen knows it only as long as the policy does. */
export const isOurLabel = (label: string): boolean => /^system_u:system_r:ca_[0-9a-f]{32}_t(_building)?$/.test(label)

/** The label a private domain has while it is being built, for `init_seclabel`. */
export const buildLabelOf = (uuid: string): string => `${labelOf(uuid)}_building`

/** The switch of one right of one service domain over one client. */
export function booleanOf(service: string, client: string, right: Right): string {
  return `ca_${digits(service)}_${digits(client)}_${right.replace('.', '_')}`
}

/** The one switch of a locked policy: off takes all back, and nothing turns it on again. */
export const LATCH = 'ca_live'
