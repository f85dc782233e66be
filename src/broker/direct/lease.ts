import * as v from 'valibot'
import { isPublicKey, type PublicKey } from '../../capabilities/keys.js'
import { isRight, type Right } from '../../capabilities/rights.js'
import { CloudAppError } from '../../errors.js'

/** One running domain: a number that is used again, and the uuid that says whether it was. */
export interface DomainRef {
  readonly domid: number
  readonly uuid: string
  /** For people. */
  readonly name: string
}

/**
 * Direct access for a time: switches of Xen's policy that are on because of one token. Whoever holds the service domain works on
 * the client without the broker, until the supervisor turns the switches off.
 */
export interface DirectLease {
  /** 32 hexadecimal digits. */
  readonly id: string
  readonly service: DomainRef
  readonly client: DomainRef
  readonly rights: readonly Right[]
  /** Names of the policy's booleans that it turns on. */
  readonly booleans: readonly string[]
  /** The owner who signed the token. */
  readonly issuer: PublicKey
  /** Ids of the token's blocks, root first: when one of them is revoked, the lease ends. */
  readonly blocks: readonly string[]
  /** Milliseconds since 1970 UTC. */
  readonly expires: number
  /**
   * What its end does. `revoke`: nothing new can be mapped; what a service domain that does not cooperate has mapped, it keeps.
   * `destroy`: the service domain is destroyed too, and its mappings with it.
   */
  readonly end: 'revoke' | 'destroy'
}

/** What ending leases did. */
export interface DirectEnd {
  /** Leases that ended. */
  readonly ended: number
  /** Names of service domains that were destroyed. */
  readonly destroyed: readonly string[]
}

export const DIRECT_LIMITS = {
  leases: 1024,
  /** Bytes of a message to the supervisor, and of its file. */
  message: 64 * 1024,
  file: 4 * 2 ** 20,
} as const

const text = (limit: number) => v.pipe(v.string(), v.minLength(1), v.maxLength(limit))
const uuid = v.pipe(v.string(), v.regex(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/, 'must be a uuid'))
const id = v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/, 'must be 32 hexadecimal digits'))
const count = (max: number) => v.pipe(v.number(), v.safeInteger(), v.minValue(0), v.maxValue(max))
const publicKey = v.custom<PublicKey>(isPublicKey, 'must be a public key')

const Domain = v.strictObject({ domid: count(0x7fef), uuid, name: text(256) })

export const LeaseSchema = v.strictObject({
  id,
  service: Domain,
  client: Domain,
  rights: v.pipe(v.array(v.custom<Right>(isRight, 'must be a right')), v.maxLength(16)),
  booleans: v.pipe(v.array(v.pipe(v.string(), v.regex(/^[a-z][a-z0-9_]{0,255}$/))), v.minLength(1), v.maxLength(16)),
  issuer: publicKey,
  blocks: v.pipe(v.array(id), v.minLength(1), v.maxLength(16)),
  expires: count(Number.MAX_SAFE_INTEGER),
  end: v.picklist(['revoke', 'destroy']),
})

/** What the supervisor is asked, one JSON document a line. */
export const RequestSchema = v.variant('op', [
  v.strictObject({ op: v.literal('start'), lease: LeaseSchema }),
  v.strictObject({ op: v.literal('end'), issuer: publicKey, block: id, hard: v.boolean() }),
  v.strictObject({ op: v.literal('list') }),
])
export type DirectRequest = v.InferOutput<typeof RequestSchema>

export const FileSchema = v.strictObject({
  version: v.literal(1),
  leases: v.pipe(v.array(LeaseSchema), v.maxLength(DIRECT_LIMITS.leases)),
})

/** @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` that names what is wrong and where. */
export function parseDirect<T extends v.GenericSchema>(what: string, schema: T, json: string): v.InferOutput<T> {
  let value: unknown
  try {
    value = JSON.parse(json)
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${what} is no JSON`, { cause })
  }
  const result = v.safeParse(schema, value)
  if (result.success) return result.output
  const [issue] = result.issues
  const at = issue === undefined ? null : v.getDotPath(issue)
  const why = `${what}${at === null ? '' : `: ${at}`}: ${String(issue?.message).slice(0, 200)}`
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', why)
}
