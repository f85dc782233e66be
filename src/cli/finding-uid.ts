import { CloudAppError } from '../errors.js'
import type { SdClient } from '../service/client.js'
import { escapeText } from '../service/table.js'
import { UsageError } from './command.js'

/** Fewer characters than this are no choice: somebody may acknowledge by them. */
const LEAST = 4

/**
 * The uid that a person means: a whole one, or the beginning or end of just one among the findings that the client sees.
 *
 * @throws UsageError for less than 4 characters of one; CloudAppError `ERR_CLOUDAPP_NOT_FOUND`,
 *   `ERR_CLOUDAPP_INVALID_ARGUMENT` if several findings fit.
 */
export async function findingUid(client: SdClient, text: string, signal: AbortSignal): Promise<string> {
  if (/^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text)) return text
  // A service domain of another make may have short uids: the whole one goes before parts of others.
  if (text !== '' && (await exists(client, text, signal))) return text
  if (text.length < LEAST) throw new UsageError(`A part of a uid has at least ${LEAST} characters, not '${text}'`)
  let only: string | undefined
  for await (const { finding } of client.findings.list({ signal })) {
    const { uid } = finding.finding_info
    if (!uid.startsWith(text) && !uid.endsWith(text)) continue
    if (only !== undefined && only !== uid) {
      const both = [only, uid].map(escapeText).join(' and ')
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `Several findings have the uid ${text}: ${both} do`)
    }
    only = uid
  }
  if (only !== undefined) return only
  throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `No finding has the uid ${text}, nor one that begins or ends so`)
}

async function exists(client: SdClient, uid: string, signal: AbortSignal): Promise<boolean> {
  try {
    await client.findings.get(uid, { signal })
    return true
  } catch (error) {
    if (CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) return false
    throw error
  }
}
