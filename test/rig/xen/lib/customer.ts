import { KeyPair, type PublicKey } from '../../../../src/capabilities/keys.js'
import { mintToken } from '../../../../src/capabilities/mint.js'
import { newBootNonce, type OwnedVm } from '../../../../src/capabilities/owners.js'
import type { Right } from '../../../../src/capabilities/rights.js'
import { parseToken, tokenToText } from '../../../../src/capabilities/token.js'
import type { Dom0 } from './dom0.js'

const CLI = '/app/node_modules/@cloudapp/sdk/dist/cli/main.js'
/** Where the customer's files lie in dom0. */
const AT = '/root/cloudapp'

export interface PlannedDomain {
  readonly name: string
  readonly uuid: string
  /** Service domains have keys. */
  readonly service?: boolean
}

export interface Delegated {
  readonly service: string
  readonly vm: string
  readonly rights: readonly Right[]
  /** ms since 1970 UTC. */
  readonly expires: number
  readonly end?: 'revoke' | 'destroy'
  /** A further limit, which Xen can not enforce. */
  readonly uses?: number
}

/** A customer's files, broker and supervisor in dom0: what the tests of FLASK delegate with. */
export class Customer {
  /** Those of the plan. */
  delegations: readonly { readonly service: string; readonly token: string; readonly end?: string }[] = []

  private constructor(
    private readonly dom0: Dom0,
    private readonly keys: ReadonlyMap<string, KeyPair>,
    private readonly domains: readonly PlannedDomain[],
    private readonly vms: readonly OwnedVm[],
  ) {}

  /** Makes keys and register, and starts the broker and the supervisor of direct access. */
  static async open(
    dom0: Dom0,
    domains: readonly PlannedDomain[],
    owners: Readonly<Record<string, string>>,
  ): Promise<Customer> {
    const keys = new Map<string, KeyPair>()
    await dom0.run(`mkdir -p -m 700 ${AT}/state ${AT}/direct /run/cloudapp`)
    for (const name of ['broker', ...new Set(Object.values(owners))]) {
      const pair = KeyPair.generate()
      keys.set(name, pair)
      await dom0.push(`${AT}/${name}.key`, pair.exportPem(), 0o600)
    }
    for (const { name } of domains.filter(({ service }) => service)) keys.set(name, KeyPair.generate())
    const vms = domains.flatMap(({ name, uuid }): OwnedVm[] => {
      const owner = owners[name]
      if (owner === undefined) return []
      return [{ name, uuid, bootNonce: newBootNonce(), owner: publicOf(keys, owner), source: `xen:${uuid}` }]
    })
    await dom0.push(`${AT}/owners.json`, JSON.stringify({ version: 1, vms }))
    const config = { key: 'broker.key', register: 'owners.json', state: 'state', socket: 'broker.sock' }
    await dom0.push(`${AT}/broker.json`, JSON.stringify({ ...config, supervisor: '/run/cloudapp-direct/direct.sock' }))
    const customer = new Customer(dom0, keys, domains, vms)
    await customer.serve('supervisor', `flask supervise --state ${AT}/direct`)
    await customer.restart()
    return customer
  }

  /** Starts the broker, at first or after it was killed. */
  restart(): Promise<void> {
    return this.serve('broker', `broker --config ${AT}/broker.json`)
  }

  /** Runs the `cloudapp` command in dom0. */
  async cloudapp(words: string, check = true): Promise<{ status: number; stdout: string; stderr: string }> {
    return this.dom0.run(`node ${CLI} ${words}`, { timeoutMs: 300_000, check })
  }

  /** Starts a command that stays, waits until it is ready; its pid is in /run/NAME.pid. */
  private async serve(name: string, words: string): Promise<void> {
    const line = `(echo $BASHPID > /run/${name}.pid; exec node ${CLI} ${words} --json) > /run/${name}.log 2>&1 &`
    await this.dom0.run(`bash -c '${line}'`)
    const wait = `until grep -q '^}' /run/${name}.log; do [ -e /proc/$(cat /run/${name}.pid) ] || exit 1; sleep 0.3; done`
    await this.dom0.run(`timeout 200 sh -c '${wait}' || { cat /run/${name}.log; exit 1; }`, { timeoutMs: 230_000 })
  }

  /** Signs a token, adds it to the plan, gives the block that revokes it. */
  delegate({ service, vm: name, end, ...options }: Delegated): string {
    const vm = this.vms.find((one) => one.name === name)
    const owner = [...this.keys.values()].find(({ publicKey }) => publicKey === vm?.owner)
    if (vm === undefined || owner === undefined) throw new Error(`no VM ${name}`)
    const ref = { uuid: vm.uuid, bootNonce: vm.bootNonce }
    const holder = publicOf(this.keys, service)
    const token = mintToken({ ...options, owner, vm: ref, holder, audience: publicOf(this.keys, 'broker') })
    const added = { service, token: tokenToText(token), ...(end === undefined ? {} : { end }) }
    this.delegations = [...this.delegations, added]
    return parseToken(token).blocks[0]?.id ?? ''
  }

  /** Takes all delegations out of the plan. */
  forget(): void {
    this.delegations = []
  }

  /** Writes the plan of what is delegated now and gives it to a command of `cloudapp flask`. */
  async flask(
    command: string,
    only?: readonly string[],
    check = true,
  ): Promise<{ status: number; stdout: string; stderr: string }> {
    const domains = this.domains
      .filter(({ name }) => only === undefined || only.includes(name))
      .map(({ name, uuid, service }) => ({ name, uuid, ...(service ? { key: publicOf(this.keys, name) } : {}) }))
    const plan = { broker: publicOf(this.keys, 'broker'), register: 'owners.json', state: 'state', domains }
    await this.dom0.push(`${AT}/plan.json`, JSON.stringify({ ...plan, delegations: this.delegations }))
    const [verb, ...flags] = command.split(' ')
    return this.cloudapp(`flask ${verb} --plan ${AT}/plan.json --json ${flags.join(' ')}`, check)
  }

  /** As the owner, at the broker. */
  async revoke(
    owner: string,
    block: string,
    hard = false,
  ): Promise<{ ended: number; direct: number; destroyed: string[] }> {
    const words = `revoke --broker ${AT}/broker.sock --key ${AT}/${owner}.key --json ${hard ? '--hard' : ''} ${block}`
    return JSON.parse((await this.cloudapp(words)).stdout)
  }

  /** The audit log's records. */
  async audit(): Promise<string> {
    return (await this.cloudapp(`audit show ${AT}/state/audit.log`)).stdout
  }
}

function publicOf(keys: ReadonlyMap<string, KeyPair>, name: string): PublicKey {
  const key = keys.get(name)
  if (key === undefined) throw new Error(`no key ${name}`)
  return key.publicKey
}
