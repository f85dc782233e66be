import * as v from 'valibot'
import { TOKEN_LIMITS } from '../capabilities/caveats.js'
import { isPublicKey, type PublicKey, SIGNATURE_BYTES } from '../capabilities/keys.js'
import { NONCE_BYTES } from '../capabilities/proof.js'
import { isRight, type Right } from '../capabilities/rights.js'
import { CloudAppError } from '../errors.js'

/** What a peer's arguments must look like before anything is done with them. */
const bytes = (exactly: number) =>
  v.pipe(
    v.instance(Uint8Array),
    v.check((value) => value.length === exactly, `must have ${exactly} bytes`),
  )

const nonce = bytes(NONCE_BYTES)
const publicKey = v.custom<PublicKey>(isPublicKey, 'must be a public key')

export const ProofSchema = v.strictObject({
  challenge: nonce,
  nonce,
  signature: bytes(SIGNATURE_BYTES),
})
export type WireProof = v.InferOutput<typeof ProofSchema>

export const TokenSchema = v.pipe(
  v.instance(Uint8Array),
  v.check((token) => token.length <= TOKEN_LIMITS.bytes, `has at most ${TOKEN_LIMITS.bytes} bytes`),
)
export const KeySchema = publicKey
export const BlockSchema = v.pipe(v.string(), v.regex(/^[0-9a-f]{32}$/, 'must be 32 hexadecimal digits'))
/** Whether revoking also destroys the service domains that hold direct access. */
export const HardSchema = v.optional(v.boolean(), false)
export const JobSchema = v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(0)), 0)
/** Of a subscription: the broker's memory, so less than a local subscriber may ask for. */
export const BufferSchema = v.optional(
  v.pipe(v.number(), v.safeInteger(), v.minValue(64 * 1024), v.maxValue(16 * 1024 * 1024)),
)
export const RightSchema = v.custom<Right>(isRight, 'must be a right')
export const SectionSchema = v.pipe(v.string(), v.regex(/^[A-Za-z0-9._-]{1,64}$/, 'must be the name of a section'))

/** @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` that names the argument. */
export function parseArgument<T extends v.GenericSchema>(name: string, schema: T, value: unknown): v.InferOutput<T> {
  const result = v.safeParse(schema, value)
  if (result.success) return result.output
  const issue = result.issues[0]
  const path = v.getDotPath(issue)
  throw new CloudAppError(
    'ERR_CLOUDAPP_INVALID_ARGUMENT',
    `${name}${path === null ? '' : `.${path}`}: ${issue.message.slice(0, 200)}`,
  )
}
