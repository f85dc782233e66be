import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import type { Grant } from '../caveats.js'
import type { Right } from '../rights.js'
import { DIRECT_RIGHTS, directRights } from './direct.js'
import { commsRules, domainRules, LOCK_RULES, type RuleChange } from './domains.js'
import { booleanOf, buildLabelOf, isOurLabel, LATCH, labelOf, typeOf } from './names.js'

/** A domain of the host that gets a type of its own: a client VM, a service domain, or both. */
export interface FlaskDomain {
  /** Only for people: it stands in no rule. */
  readonly name: string
  /** RFC 9562 text form, lower case. */
  readonly uuid: string
}

/** A verified capability that a service domain is to use without the broker. */
export interface FlaskDelegation {
  /** uuid of the service domain. */
  readonly service: string
  /** What its token allows; `grant.vm` is the client. */
  readonly grant: Grant
}

export interface FlaskInput {
  readonly domains: readonly FlaskDomain[]
  readonly delegations: readonly FlaskDelegation[]
  /** The control domain can build these domains and end them, but not look into them once they are built. */
  readonly private?: boolean
  /** The control domain can change the policy no more, but for one switch that takes everything back. With `private`. */
  readonly locked?: boolean
}

/** A switch of the policy. Off when the policy is loaded first; Xen keeps its state when it is loaded again. */
export interface FlaskBoolean {
  readonly name: string
  readonly service: string
  readonly client: string
  readonly right: Right
}

export interface FlaskLabel extends FlaskDomain {
  readonly seclabel: string
  /** Only of private domains. */
  readonly initSeclabel?: string
}

/** A right of a delegation, and who keeps its holder to it. */
export interface FlaskCoverage {
  readonly service: string
  readonly client: string
  readonly right: Right
  /** `hypervisor`: Xen refuses it without the switch. `broker`: only through a broker, which alone can say yes to it. */
  readonly by: 'hypervisor' | 'broker'
}

export interface FlaskPolicy {
  /** A policy module in Xen's macros (m4), to be added to the modules of Xen's own policy. */
  readonly module: string
  /** What must be taken out of Xen's own policy for this one to hold. */
  readonly changes: readonly RuleChange[]
  readonly booleans: readonly FlaskBoolean[]
  readonly labels: readonly FlaskLabel[]
  readonly coverage: readonly FlaskCoverage[]
}

/** Of labels that domains run under, those that policies made here gave them and that this one would not know. */
export function labelsLost(policy: FlaskPolicy, labels: readonly string[]): string[] {
  const kept = new Set(policy.labels.flatMap(({ seclabel, initSeclabel }) => [seclabel, initSeclabel]))
  return labels.filter((label) => isOurLabel(label) && !kept.has(label))
}

export const FLASK_LIMITS = { domains: 256, delegations: 1024 } as const

/**
 * Turns live delegations into a FLASK policy: a type for each domain, a switch for each service domain, client and right,
 * and behind it the permissions that right needs.
 *
 * Pure: looks at no host. The same input gives the same text.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` for a grant that Xen can not enforce (`details.dimensions` names what it
 *   is limited in), `ERR_CLOUDAPP_NOT_FOUND` for a delegation of a domain that is not in `domains`,
 *   `ERR_CLOUDAPP_LIMIT`, `ERR_CLOUDAPP_INVALID_ARGUMENT`.
 */
export function compileFlask(input: FlaskInput): FlaskPolicy {
  checkOptions('compileFlask', input, ['domains', 'delegations', 'private', 'locked'])
  const { private: isPrivate = false, locked = false } = input
  if (locked && !isPrivate) {
    const why = 'a locked policy protects private domains: set private as well'
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', why)
  }
  const domains = checkedDomains(input.domains)
  const pairs = pairsOf(input.delegations, domains)
  const booleans = locked ? [] : pairs.flatMap(switches)
  const sections = [
    ...(locked ? [`gen_bool(${LATCH}, true)`] : booleans.map(({ name }) => `gen_bool(${name}, false)`)),
    ...[...domains.values()].map((domain) => domainRules(domain, { isPrivate, locked })),
    ...pairs.map(({ service, client }) => commsRules(service, client)),
    ...pairs.map((pair) => rules(pair, locked)),
    ...quiet(pairs),
    ...(locked ? [LOCK_RULES.module] : []),
  ]
  return {
    module: `${sections.join('\n')}\n`,
    changes: locked ? LOCK_RULES.changes : [],
    booleans,
    labels: [...domains.values()].map((domain) => ({
      ...domain,
      seclabel: labelOf(domain.uuid),
      ...(isPrivate ? { initSeclabel: buildLabelOf(domain.uuid) } : {}),
    })),
    coverage: pairs.flatMap(({ service, client, rights, others }) => [
      ...rights.map((right) => ({ service, client, right, by: 'hypervisor' as const })),
      ...others.map((right) => ({ service, client, right, by: 'broker' as const })),
    ]),
  }
}

/** What one service domain may do to one client, by all of its tokens. */
interface Pair {
  readonly service: string
  readonly client: string
  readonly rights: readonly Right[]
  /** Held, but not for Xen to give. */
  readonly others: readonly Right[]
}

function checkedDomains(list: readonly FlaskDomain[]): Map<string, FlaskDomain> {
  bound('domains', list.length, FLASK_LIMITS.domains)
  const domains = new Map<string, FlaskDomain>()
  for (const { name, uuid } of [...list].sort((a, b) => (a.uuid < b.uuid ? -1 : 1))) {
    typeOf(uuid)
    if (domains.has(uuid)) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `the domain ${uuid} is there twice`)
    domains.set(uuid, { name, uuid })
  }
  return domains
}

function pairsOf(delegations: readonly FlaskDelegation[], domains: ReadonlyMap<string, FlaskDomain>): Pair[] {
  bound('delegations', delegations.length, FLASK_LIMITS.delegations)
  const pairs = new Map<string, { service: string; client: string; rights: Set<Right>; others: Set<Right> }>()
  for (const { service, grant } of delegations) {
    const client = grant.vm.uuid
    for (const uuid of [service, client]) {
      if (!domains.has(uuid)) {
        throw new CloudAppError(
          'ERR_CLOUDAPP_NOT_FOUND',
          `a delegation is about ${uuid}, which is no domain of the input`,
        )
      }
    }
    if (service === client) {
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${service} can not be its own service domain`)
    }
    const key = `${service} ${client}`
    const pair = pairs.get(key) ?? { service, client, rights: new Set(), others: new Set() }
    for (const right of directRights(grant)) pair.rights.add(right)
    for (const right of grant.rights) if (DIRECT_RIGHTS[right] === undefined) pair.others.add(right)
    pairs.set(key, pair)
  }
  return [...pairs.keys()].sort().map((key) => {
    const { service, client, rights, others } = pairs.get(key) as NonNullable<ReturnType<typeof pairs.get>>
    return { service, client, rights: [...rights], others: [...others] }
  })
}

const switches = ({ service, client, rights }: Pair): FlaskBoolean[] =>
  rights.map((right) => ({ name: booleanOf(service, client, right), service, client, right }))

/** The rules of a pair: behind a switch each, or, in a locked policy, all behind the one there is. */
function rules({ service, client, rights }: Pair, locked: boolean): string {
  const behind = (name: string, held: readonly Right[]): string => {
    const lines = held.flatMap((right) =>
      (DIRECT_RIGHTS[right] ?? []).map(
        (allow) => `  allow ${typeOf(service)} ${typeOf(client)}:${allow.class} { ${allow.permissions.join(' ')} };`,
      ),
    )
    return [`if (${name}) {`, ...lines, '}'].join('\n')
  }
  if (locked) return behind(LATCH, rights)
  return rights.map((right) => behind(booleanOf(service, client, right), [right])).join('\n')
}

/** Xen prints a line for each page it refuses: a large mapping would fill the console. */
function quiet(pairs: readonly Pair[]): string[] {
  return pairs.map(
    ({ service, client }) => `dontaudit ${typeOf(service)} ${typeOf(client)}:mmu { map_read map_write stat };`,
  )
}

function bound(what: string, count: number, limit: number): void {
  if (count <= limit) return
  throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `a policy is for ${limit} ${what} at most, not ${count}`, {
    details: { limit, count },
  })
}
