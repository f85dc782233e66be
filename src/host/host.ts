import { CloudAppError } from '../errors.js'
import { type Run, run } from './run.js'

/** A domain as the toolstack lists it. */
export interface HostDomain {
  readonly domid: number
  readonly name: string
  /** RFC 9562 text form, lower case. */
  readonly uuid: string
  /** Its FLASK label; undefined on a Xen without. */
  readonly label?: string
}

/**
 * The toolstack: what a broker and the supervisor of leases do to domains as such. Service domains never hold it.
 *
 * Grows with what its callers need.
 */
export interface Host {
  /** Every domain, the control domain included. */
  list(): Promise<HostDomain[]>
  /**
   * Ends a domain at once and waits until it has gone: its memory, and every mapping it held of others.
   *
   * @param expected its uuid: a domain that got the number since is left alone. @throws CloudAppError
   *   `ERR_CLOUDAPP_NOT_FOUND`, `ERR_CLOUDAPP_TIMEOUT` if it is still there after 60 s.
   */
  destroy(domid: number, expected: string): Promise<void>
}

const GONE_WITHIN_MS = 60_000
const LOOK_MS = 200
/** Domains of a host that are looked at; Xen's own limit is 32,751. */
const MAX_DOMAINS = 32_751

/** The toolstack of Xen, by xl(1). */
export class XlHost implements Host {
  readonly #run: Run

  constructor(runner: Run = run) {
    this.#run = runner
  }

  async list(): Promise<HostDomain[]> {
    const lines = (await this.#run('xl', ['list', '-v'])).split('\n').slice(1, MAX_DOMAINS)
    return lines.flatMap((line) => parse(line) ?? [])
  }

  async destroy(domid: number, expected: string): Promise<void> {
    const found = await this.#find(domid, expected)
    if (found === undefined) {
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `there is no domain ${domid} with the uuid ${expected}`)
    }
    await this.#run('xl', ['destroy', String(domid)])
    for (const end = Date.now() + GONE_WITHIN_MS; (await this.#find(domid, expected)) !== undefined; ) {
      if (Date.now() > end) {
        const why = `domain ${domid} was destroyed ${GONE_WITHIN_MS / 1000} s ago and is still in the list`
        throw new CloudAppError('ERR_CLOUDAPP_TIMEOUT', why, { vm: found.name })
      }
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS))
    }
  }

  async #find(domid: number, uuid: string): Promise<HostDomain | undefined> {
    return (await this.list()).find((domain) => domain.domid === domid && domain.uuid === uuid)
  }
}

/** Name, ID, Mem, VCPUs, State, Time(s), UUID, Reason-Code, Security Label. A name may have blanks in it. */
const LINE = /^(.+?)\s+(\d+)\s+\d+\s+\d+\s+\S{6}\s+[\d.]+\s+([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s+\S+\s*(\S*)/

function parse(line: string): HostDomain | undefined {
  const found = LINE.exec(line.slice(0, 4096))
  if (found === null) return undefined
  const [, name = '', domid = '', uuid = '', label = ''] = found
  return { name, domid: Number(domid), uuid, ...(label.includes(':') ? { label } : {}) }
}
