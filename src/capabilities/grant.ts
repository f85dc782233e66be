import { CloudAppError } from '../errors.js'
import type { BlockContent } from './block.js'
import type { Grant } from './caveats.js'
import { findWidening, narrowGrant, type Widening, withinProcesses } from './narrow.js'
import { tokenError } from './token.js'

/**
 * What a chain of blocks allows in all. Looks at no signature.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_TOKEN`: a root that lacks a required part (`malformed`), or a block that asks for
 *   more than the blocks before it allow (`widening`).
 */
export function grantOf(blocks: readonly BlockContent[]): Grant {
  const [root, ...appended] = blocks
  let grant = rootGrant(root)
  for (const [i, { narrowing }] of appended.entries()) {
    const widening = findWidening(grant, narrowing)
    if (widening !== undefined) throw wideningError(widening, i + 1)
    grant = narrowGrant(grant, narrowing)
  }
  return grant
}

function rootGrant(root: BlockContent | undefined): Grant {
  const { vm, narrowing } = root ?? { narrowing: {} }
  const { rights, notBefore, expires, audience } = narrowing
  if (
    vm === undefined ||
    rights === undefined ||
    notBefore === undefined ||
    expires === undefined ||
    audience === undefined
  ) {
    throw tokenError('malformed', 'a root block names VM, rights, audience, not-before and expiry', 0)
  }
  const grant = { ...narrowing, vm, rights, notBefore, expires, audience }
  const implied = narrowing.processes !== undefined && narrowing.memory === undefined
  return implied ? { ...grant, memory: withinProcesses(undefined) } : grant
}

/** The error for a block that asks for more than it may. */
export function wideningError({ dimension, rights }: Widening, block: number): CloudAppError {
  const what = rights === undefined ? dimension : `rights (${rights.join(', ')})`
  const message = `block ${block} may only narrow, but widens ${what}`
  return new CloudAppError('ERR_CLOUDAPP_TOKEN', message, { details: { reason: 'widening', block, dimension } })
}
