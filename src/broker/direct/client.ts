import type { PublicKey } from '../../capabilities/keys.js'
import { CloudAppError } from '../../errors.js'
import { connectUnix } from '../../transport/unix.js'
import { errorFromPeer } from '../../transport/wire-error.js'
import { DIRECT_LIMITS, type DirectEnd, type DirectLease, type DirectRequest } from './lease.js'
import { readLines } from './line.js'

/** Ending a lease can mean destroying a domain. */
const TIMEOUT_MS = 180_000

/** The far end of the supervisor of direct access, by its socket. Each call is a connection: there may be a new supervisor. */
export class DirectClient {
  readonly #socket: string

  constructor(socket: string) {
    this.#socket = socket
  }

  /** @throws CloudAppError as `DirectLeases.start`; `ERR_CLOUDAPP_NOT_FOUND` if no supervisor listens. */
  async start(lease: DirectLease): Promise<void> {
    await this.#ask({ op: 'start', lease: lease as Extract<DirectRequest, { op: 'start' }>['lease'] })
  }

  /** @throws CloudAppError as `DirectLeases.endBlock`; `ERR_CLOUDAPP_NOT_FOUND` if no supervisor listens. */
  async end(issuer: PublicKey, block: string, hard: boolean): Promise<DirectEnd> {
    return (await this.#ask({ op: 'end', issuer, block, hard })) as DirectEnd
  }

  async list(): Promise<DirectLease[]> {
    return (await this.#ask({ op: 'list' })) as DirectLease[]
  }

  async #ask(request: DirectRequest): Promise<unknown> {
    const channel = await connectUnix({ path: this.#socket })
    // A supervisor that hangs must not hang its caller.
    const timer = setTimeout(() => void channel.close(), TIMEOUT_MS)
    try {
      channel.write(Buffer.from(`${JSON.stringify(request)}\n`))
      for await (const line of readLines(channel, DIRECT_LIMITS.file)) {
        const answer = JSON.parse(line) as { ok?: unknown; error?: unknown }
        if (answer.error !== undefined) throw errorFromPeer(answer.error)
        return answer.ok
      }
      throw new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the supervisor of direct access went away before it answered')
    } finally {
      clearTimeout(timer)
      await channel.close()
    }
  }
}
