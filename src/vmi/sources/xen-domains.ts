import { CloudAppError } from '../../errors.js'
import type { Shim } from '../../native/abi.js'
import { checked } from '../../native/shim.js'

/** A domain as Xen lists it. */
export interface XenDomain {
  readonly domid: number
  /** RFC 9562 text form, lower case. */
  readonly uuid: string
  /** Page tables of its own: HVM and PVH, not PV. */
  readonly hvm: boolean
  readonly dying: boolean
  /** Of RAM, 4096 bytes each. */
  readonly pages: bigint
  readonly vcpus: number
  /** Highest vCPU id; -1 without any. */
  readonly lastVcpu: number
}

/** u64 words of a row; CA_XEN_DOMAIN_WORDS. */
const WORDS = 8
const DYING = 1n
const HVM = 2n
const NO_VCPU = 0xffff_ffffn
/** Domids end below DOMID_FIRST_RESERVED (xen.h). */
export const LAST_DOMID = 0x7fef
const VALUE_LIMIT = 4096

/**
 * Whether the kernel passes on to Xen what this domain asks, tried on what Xen tells everybody: its version.
 *
 * @throws CloudAppError ERR_CLOUDAPP_UNSUPPORTED, naming what is missing for it to be tried
 */
export function mayAskXen(shim: Shim): boolean {
  return checked(shim, shim.ca_xen_version()) > 0
}

/** All domains, in order. @throws CloudAppError ERR_CLOUDAPP_UNSUPPORTED, naming what is missing and the fix. */
export function listDomains(shim: Shim): XenDomain[] {
  const all: XenDomain[] = []
  const rows = new BigUint64Array(64 * WORDS)
  for (let first = 0; first <= LAST_DOMID; ) {
    const count = checked(shim, shim.ca_xen_domains(first, rows, rows.length / WORDS))
    for (let i = 0; i < count; i++) all.push(domain(rows.subarray(i * WORDS, (i + 1) * WORDS)))
    if (count < rows.length / WORDS) break
    first = (all.at(-1)?.domid ?? LAST_DOMID) + 1
  }
  return all
}

/** One domain, or undefined if there is none of this number. */
export function domainOf(shim: Shim, domid: number): XenDomain | undefined {
  const row = new BigUint64Array(WORDS)
  const count = checked(shim, shim.ca_xen_domains(domid, row, 1))
  const found = count === 1 ? domain(row) : undefined
  return found?.domid === domid ? found : undefined
}

function domain(row: BigUint64Array): XenDomain {
  const [domid = 0n, flags = 0n, pages = 0n, vcpus = 0n, last = NO_VCPU] = row
  const hex = Buffer.from(row.slice(5, 7).buffer).toString('hex')
  return {
    domid: Number(domid),
    uuid: hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5'),
    hvm: (flags & HVM) !== 0n,
    dying: (flags & DYING) !== 0n,
    pages,
    vcpus: Number(vcpus),
    lastVcpu: last === NO_VCPU ? -1 : Number(last),
  }
}

/** A value of xenstore; undefined if there is no such key. */
export function readStore(shim: Shim, key: string): string | undefined {
  const value = new Uint8Array(VALUE_LIMIT)
  try {
    const length = checked(shim, shim.ca_xen_store(Buffer.from(`${key}\0`), value, value.length))
    return Buffer.from(value.buffer, 0, Math.min(length, value.length - 1)).toString('utf8')
  } catch (error) {
    // CA_E_OPEN: no such key.
    if (CloudAppError.is(error) && error.details?.native === -3) return undefined
    throw error
  }
}

/** The toolstack's name of a domain. */
export const domainName = (shim: Shim, domid: number): string | undefined =>
  readStore(shim, `/local/domain/${domid}/name`)

/**
 * Finds a domain by name, number or uuid. Digits alone are a number.
 *
 * @throws CloudAppError ERR_CLOUDAPP_NOT_FOUND naming the domains there are; ERR_CLOUDAPP_UNSUPPORTED.
 */
export function findDomain(shim: Shim, which: string): XenDomain & { readonly name: string } {
  const named = listDomains(shim).map((entry) => ({ ...entry, name: domainName(shim, entry.domid) ?? entry.uuid }))
  const found = named.filter(({ name, uuid, domid }) => {
    if (/^\d+$/.test(which)) return domid === Number(which)
    return name === which || uuid === which.toLowerCase()
  })
  const [only] = found
  if (only === undefined || found.length > 1) {
    const there = named.map(({ name, domid }) => `${name} (${domid})`)
    const what = only === undefined ? `there is no domain '${which}'` : `'${which}' names ${found.length} domains`
    throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `${what}; running: ${there.slice(0, 32).join(', ')}`, {
      vm: which,
      details: { running: there },
    })
  }
  return only
}
