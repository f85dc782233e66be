import { once } from 'node:events'
import type { ServerResponse } from 'node:http'
import { CloudAppError, type CloudAppErrorCode } from '../../errors.js'
import { safeJson } from '../safe-json.js'
import { type Answer, LINES_TYPE } from './routes.js'

/** A reader that takes nothing for so long, in ms, is let go of. */
const STALLED = 60_000

const STATUS: Readonly<Partial<Record<CloudAppErrorCode, number>>> = {
  ERR_CLOUDAPP_INVALID_ARGUMENT: 400,
  ERR_CLOUDAPP_UNKNOWN_OPTION: 400,
  ERR_CLOUDAPP_PROOF: 401,
  ERR_CLOUDAPP_EXPIRED: 401,
  ERR_CLOUDAPP_DENIED: 403,
  ERR_CLOUDAPP_NOT_FOUND: 404,
  ERR_CLOUDAPP_LIMIT: 429,
  ERR_CLOUDAPP_PROTOCOL: 502,
  ERR_CLOUDAPP_CLOSED: 503,
  ERR_CLOUDAPP_ABORTED: 504,
  ERR_CLOUDAPP_TIMEOUT: 504,
}

/** An error as a document. What is none of ours says nothing of what went wrong inside. */
export function errorBody(error: unknown): { readonly code: string; readonly message: string } {
  if (CloudAppError.is(error)) return { code: error.code, message: error.message.slice(0, 1000) }
  return { code: 'ERR_CLOUDAPP_UNEXPECTED', message: 'The gateway failed' }
}

export function sendError(response: ServerResponse, error: unknown, status?: number): void {
  if (response.headersSent) {
    response.destroy()
    return
  }
  const code = status ?? (CloudAppError.is(error) ? (STATUS[error.code] ?? 500) : 500)
  const headers: Record<string, string> = code === 401 ? { 'www-authenticate': 'Bearer' } : {}
  sendJson(response, code, { error: errorBody(error) }, headers)
}

export function sendJson(
  response: ServerResponse,
  status: number,
  value: unknown,
  headers: Record<string, string> = {},
): void {
  const body = Buffer.from(`${safeJson(value)}\n`)
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': body.length, ...headers })
  response.end(body)
}

/** Sends an answer as fast as it is read. Throws what its source throws; then, if it has begun, the end is told in it. */
export async function send(response: ServerResponse, answer: Answer, signal: AbortSignal): Promise<void> {
  switch (answer.kind) {
    case 'json':
      sendJson(response, 200, answer.value)
      return
    case 'lines': {
      // The head goes out at once: a watch may have nothing to say for hours.
      const head = () => response.writeHead(200, { 'content-type': LINES_TYPE, ...answer.headers }).flushHeaders()
      head()
      try {
        for await (const line of answer.lines) await write(response, `${safeJson(line)}\n`, signal)
      } catch (error) {
        if (!signal.aborted) response.write(`${safeJson({ type: 'error', error: errorBody(error) })}\n`)
      }
      response.end()
      return
    }
    case 'bytes': {
      const parts = answer.bytes[Symbol.asyncIterator]()
      const first = await parts.next()
      response.writeHead(200, { 'content-type': 'application/octet-stream', 'content-disposition': 'attachment' })
      try {
        for (let part = first; !part.done; part = await parts.next()) await write(response, part.value, signal)
      } catch {
        // What went out is not what was asked for: an end without the last chunk is how HTTP says so.
        response.destroy()
        return
      }
      response.end()
    }
  }
}

async function write(response: ServerResponse, chunk: string | Uint8Array, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted()
  if (response.write(chunk)) return
  const late = AbortSignal.timeout(STALLED)
  try {
    await once(response, 'drain', { signal: AbortSignal.any([signal, late]) })
  } catch (cause) {
    response.destroy()
    throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'The reader of the answer is gone, or takes nothing', { cause })
  }
}
