import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import { boundText, Cuts, FINDING_LIMITS } from '../bounds.js'
import type { FindingDraft } from '../draft.js'
import type { ArtifactFiles } from './files.js'
import type { ArtifactInput, ArtifactRef } from './types.js'

/** type/subtype of RFC 6838, 4.2, without parameters. */
const MEDIA_TYPE = /^[a-z0-9][a-z0-9!#$&^_.+-]{0,63}\/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}$/i

/** Throws ERR_CLOUDAPP_INVALID_ARGUMENT or ERR_CLOUDAPP_UNKNOWN_OPTION on misuse. */
export function checkArtifacts(inputs: readonly ArtifactInput[]): void {
  const bad = (why: string) => new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `artifacts: ${why}`)
  if (!Array.isArray(inputs)) throw bad('must be an array')
  for (const input of inputs.slice(0, FINDING_LIMITS.artifacts)) {
    checkOptions('artifacts', input, ['name', 'type', 'data'])
    if (typeof input.name !== 'string') throw bad('name must be text')
    if (input.type !== undefined && !MEDIA_TYPE.test(input.type)) throw bad('type must be such as application/json')
    const { data } = input
    const streams = typeof data === 'object' && data !== null && Symbol.asyncIterator in data
    if (!(data instanceof Uint8Array) && !streams) throw bad('data must be bytes or a stream of bytes')
  }
}

/**
 * Puts the evidence of a finding on disk. What can not be kept never keeps the finding from being raised: it is stated among
 * the finding's cuts, and `onError` is told.
 */
export async function keepArtifacts(
  files: ArtifactFiles,
  draft: FindingDraft,
  inputs: readonly ArtifactInput[],
  onError: (error: unknown) => void,
): Promise<FindingDraft> {
  const cuts = new Cuts()
  for (const cut of draft.cut ?? []) cuts.add(cut)
  if (inputs.length > FINDING_LIMITS.artifacts) {
    cuts.add(`artifacts: ${FINDING_LIMITS.artifacts} of ${inputs.length}`)
  }
  const refs = new Map<string, ArtifactRef>()
  for (const [index, input] of inputs.slice(0, FINDING_LIMITS.artifacts).entries()) {
    const path = `artifacts[${index}]`
    try {
      const { digest, bytes, truncated } = await files.put(input.data)
      if (truncated) cuts.add(`${path}: the first ${bytes} bytes`)
      // The same bytes twice in one finding are one artifact, held once.
      if (refs.has(digest)) files.settled([digest])
      refs.set(digest, {
        digest,
        bytes,
        name: boundText(input.name, FINDING_LIMITS.label, `${path}.name`, cuts),
        type: input.type ?? 'application/octet-stream',
        ...(truncated && { truncated }),
      })
    } catch (error) {
      const code = CloudAppError.is(error) ? error.code : 'the source failed'
      cuts.add(`${path}: not kept (${code})`)
      onError(error)
    }
  }
  return { ...draft, artifacts: [...refs.values()], ...(cuts.any && { cut: cuts.list() }) }
}
