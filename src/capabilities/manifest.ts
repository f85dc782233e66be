import * as v from 'valibot'
import { CloudAppError } from '../errors.js'
import { readBounded } from './files.js'
import { isPublicKey } from './keys.js'
import { isRight, type Right } from './rights.js'

/** A manifest is at most so many bytes. */
const LIMIT = 64 * 1024

const word = v.pipe(
  v.string(),
  v.regex(/^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/, 'must be a lower-case word with dashes'),
)
const line = (limit: number) => v.pipe(v.string(), v.minLength(1), v.maxLength(limit))

const schema = v.strictObject({
  /** Version of this format. */
  cloudapp: v.literal(1),
  /** Name by which clients find the service domain. */
  name: word,
  /** For people. */
  title: line(128),
  version: v.pipe(line(64), v.regex(/^\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.+-]+)?$/, 'must be a version such as 1.2.3')),
  vendor: line(128),
  /** Key of who publishes it. */
  publisher: v.optional(v.custom<`ed25519:${string}`>(isPublicKey, 'must be a public key, ed25519:…')),
  description: v.optional(line(2048)),
  /** What it asks the customer for, each with a reason. `optional`: it works without. */
  rights: v.pipe(
    v.array(
      v.strictObject({
        right: v.custom<Right>(isRight, 'must be one of the rights of the vocabulary'),
        reason: line(512),
        optional: v.optional(v.boolean()),
      }),
    ),
    v.maxLength(32),
    v.check((asked) => new Set(asked.map((a) => a.right)).size === asked.length, 'asks twice for one right'),
  ),
  /** Kinds of result it publishes, e.g. `findings`. */
  publishes: v.pipe(v.array(word), v.maxLength(32)),
  /** Digest of the image that runs: what was looked at is what is run. */
  image: v.optional(v.pipe(v.string(), v.regex(/^sha256:[0-9a-f]{64}$/, 'must be sha256: and 64 hexadecimal digits'))),
  /** The publisher's, in base64url (manifest-sign.ts). */
  signature: v.optional(v.pipe(v.string(), v.regex(/^[A-Za-z0-9_-]{85}[AQgw]$/, 'must be 64 bytes in base64url'))),
})

/** What a service domain says of itself, and the rights it asks for: the file `cloudapp.json`. */
export type Manifest = v.InferOutput<typeof schema>

/**
 * Checks a manifest strictly: unknown fields are refused.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` that names the field and what is wrong with it.
 */
export function parseManifest(value: unknown): Manifest {
  const result = v.safeParse(schema, value)
  if (result.success) return result.output
  const problems = result.issues.slice(0, 16).map((issue) => `${v.getDotPath(issue) ?? 'manifest'}: ${issue.message}`)
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `This is no valid manifest. ${problems[0]?.slice(0, 300)}`, {
    details: { problems: problems.map((p) => p.slice(0, 300)) },
  })
}

/**
 * Reads and checks a manifest file.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND`, `ERR_CLOUDAPP_INVALID_ARGUMENT`
 */
export async function readManifest(path: string): Promise<Manifest> {
  const text = await readBounded(path, LIMIT, 'Manifest')
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `Manifest ${path} is no JSON`, { cause })
  }
  return parseManifest(value)
}
