import path from 'node:path'
import * as v from 'valibot'
import { readRevocations } from '../broker/state.js'
import type { FlaskDelegation, FlaskDomain } from '../capabilities/flask/compile.js'
import { loadPublicKey } from '../capabilities/key-files.js'
import { isPublicKey, type PublicKey } from '../capabilities/keys.js'
import { type OwnedVm, OwnerRegister } from '../capabilities/owners.js'
import { tokenFromText } from '../capabilities/token.js'
import { type VerifiedToken, verifyToken } from '../capabilities/verify.js'
import { CloudAppError } from '../errors.js'
import { readTextFile } from './files.js'
import { arrivingTransport } from './token-options.js'

/** A delegation of a plan, its token verified. */
export interface PlannedDelegation extends FlaskDelegation {
  readonly serviceName: string
  readonly token: VerifiedToken
  /** The client as the host's register has it. */
  readonly vm: OwnedVm
  readonly end: 'revoke' | 'destroy'
}

export interface FlaskPlan {
  readonly domains: readonly FlaskDomain[]
  readonly delegations: readonly PlannedDelegation[]
  /** True for a block that its issuer has revoked, by now. */
  revoked(issuer: PublicKey, block: string): Promise<boolean>
}

const MAX_PLAN = 4 * 2 ** 20

const name = v.pipe(v.string(), v.regex(/^[A-Za-z0-9._-]{1,64}$/, "must be 1 to 64 letters, digits, '.', '_' or '-'"))
const file = v.pipe(v.string(), v.minLength(1), v.maxLength(4096))

const PlanSchema = v.strictObject({
  broker: file,
  register: file,
  state: file,
  domains: v.pipe(
    v.array(
      v.strictObject({
        name,
        uuid: v.pipe(
          v.string(),
          v.regex(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/, 'must be a uuid in lower case'),
        ),
        key: v.optional(v.custom<PublicKey>(isPublicKey, 'must be a public key, ed25519:…')),
      }),
    ),
    v.maxLength(256),
  ),
  delegations: v.pipe(
    v.array(
      v.strictObject({ service: name, token: file, end: v.optional(v.picklist(['revoke', 'destroy']), 'revoke') }),
    ),
    v.maxLength(1024),
  ),
})

/**
 * Reads a plan of direct access and verifies its tokens, as a broker would: signatures, owner, boot of the VM, time, revocation;
 * and that the service domain a token is for is one whose key the token was made out to.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` naming what is wrong in the plan, and what `verifyToken` throws.
 */
export async function readPlan(name: string): Promise<FlaskPlan> {
  const plan = parse(name, await readTextFile(name, MAX_PLAN, 'the plan'))
  const folder = path.dirname(path.resolve(name))
  const at = (file: string): string => path.resolve(folder, file)
  const register = await OwnerRegister.open(at(plan.register))
  const broker = isPublicKey(plan.broker) ? plan.broker : await loadPublicKey(at(plan.broker))
  const isRevoked = await readRevocations(at(plan.state))
  const delegations = plan.delegations.map((entry, i): PlannedDelegation => {
    const wrong = (why: string): CloudAppError =>
      new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${name}: delegation ${i}: ${why}`)
    const service = plan.domains.find((domain) => domain.name === entry.service)
    if (service === undefined) throw wrong(`the service domain '${entry.service}' is not among the domains`)
    const text = tokenFromText(entry.token)
    const token = verifyToken(text, {
      broker,
      ownerOf: register.ownerOf,
      now: Date.now(),
      // The issuer is not known before the chain is read; asked for each below.
      revoked: () => false,
      // A token that is bound to transports is refused later, by that name.
      ...arrivingTransport(text),
    })
    const dead = token.ids.find((id) => isRevoked(token.issuer, id))
    if (dead !== undefined) {
      throw new CloudAppError('ERR_CLOUDAPP_REVOKED', `${name}: delegation ${i}: the capability was revoked`, {
        details: { block: dead },
      })
    }
    if (service.key !== token.holder) {
      throw wrong(`the token is made out to ${token.holder}, and ${service.name} has ${service.key ?? 'no key'}`)
    }
    const vm = register.byUuid(token.grant.vm.uuid)
    if (vm === undefined) throw wrong('its VM is not in the register')
    return { service: service.uuid, serviceName: service.name, grant: token.grant, token, vm, end: entry.end }
  })
  return {
    domains: plan.domains.map(({ name, uuid }) => ({ name, uuid })),
    delegations,
    revoked: async (issuer, block) => (await readRevocations(at(plan.state)))(issuer, block),
  }
}

function parse(file: string, json: string): v.InferOutput<typeof PlanSchema> {
  let value: unknown
  try {
    value = JSON.parse(json)
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${file} is no JSON`, { cause })
  }
  const result = v.safeParse(PlanSchema, value)
  if (result.success) return result.output
  const [issue] = result.issues
  const at = issue === undefined ? null : v.getDotPath(issue)
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${file}: ${at ?? 'the file'}: ${issue?.message}`)
}
