import { CloudAppError } from '../../../src/errors.js'
import type { FlaskHost } from '../../../src/host/flask.js'
import type { Host, HostDomain } from '../../../src/host/host.js'

export const uuid = (n: number): string => `00000000-0000-4000-8000-00000000000${n}`

/** A host of three domains and three switches, in memory; test/rig/xen/flask.test.ts has the real one. */
export class Toolstack implements Host, FlaskHost {
  domains: HostDomain[] = [1, 2, 3].map((n) => ({ domid: n, name: `d${n}`, uuid: uuid(n) }))
  on = new Map<string, boolean>([
    ['ca_a', false],
    ['ca_b', false],
    ['ca_live', true],
  ])
  /** Switches can not be turned any more. */
  broken = false

  async list(): Promise<HostDomain[]> {
    return this.domains
  }

  async destroy(domid: number): Promise<void> {
    if (!this.domains.some((domain) => domain.domid === domid)) {
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', 'gone')
    }
    this.domains = this.domains.filter((domain) => domain.domid !== domid)
  }

  async mode(): Promise<'enforcing'> {
    return 'enforcing'
  }

  async load(): Promise<void> {}

  async booleans(): Promise<ReadonlyMap<string, boolean>> {
    return this.on
  }

  async set(name: string, on: boolean): Promise<void> {
    if (this.broken || !this.on.has(name)) throw new CloudAppError('ERR_CLOUDAPP_SOURCE', 'no')
    this.on.set(name, on)
  }
}
