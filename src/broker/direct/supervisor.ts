import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { CloudAppError } from '../../errors.js'
import { type FlaskHost, XlFlask } from '../../host/flask.js'
import { type Host, XlHost } from '../../host/host.js'
import { checkOptions } from '../../options.js'
import type { Channel } from '../../transport/channel.js'
import { listenUnix } from '../../transport/unix.js'
import { DIRECT_LIMITS, type DirectEnd, type DirectLease, parseDirect, RequestSchema } from './lease.js'
import { DirectLeases } from './leases.js'
import { readLines } from './line.js'

export interface SuperviseOptions {
  /** Folder of what must survive. Made if missing, mode 0700. */
  readonly state: string
  /** Where it listens; `direct.sock` in the state folder by default. */
  readonly socket?: string
  /** Permissions of the socket; 0o600 by default. Whoever may connect can end leases; only the same user can start them. */
  readonly mode?: number
  readonly host?: Host
  readonly flask?: FlaskHost
  readonly onTrouble?: (lease: DirectLease, error: unknown) => void
}

export interface Supervisor extends AsyncDisposable {
  readonly socket: string
  list(): DirectLease[]
  /** Stops. What is on stays on until another supervisor is started on the same state. Idempotent. */
  close(): Promise<void>
}

/** Who may do nothing else than ask it: the broker, and the command that starts leases. */
const MAX_CHANNELS = 32

/**
 * Runs the supervisor of direct access: a process of its own beside the broker, so that leases end at their time whatever happens
 * to the broker. It alone turns switches of Xen's policy on and off.
 *
 * @throws CloudAppError as {@link DirectLeases.open} and `listenUnix`.
 */
export async function superviseDirect(options: SuperviseOptions): Promise<Supervisor> {
  checkOptions('superviseDirect', options, ['state', 'socket', 'mode', 'host', 'flask', 'onTrouble'])
  await mkdir(options.state, { recursive: true, mode: 0o700 })
  const socket = options.socket ?? join(options.state, 'direct.sock')
  const leases = await DirectLeases.open({
    state: options.state,
    host: options.host ?? new XlHost(),
    flask: options.flask ?? new XlFlask(),
    ...(options.onTrouble === undefined ? {} : { onTrouble: options.onTrouble }),
  })
  const channels = new Set<Channel>()
  const listener = await listenUnix({
    path: socket,
    ...(options.mode === undefined ? {} : { mode: options.mode }),
    maxChannels: MAX_CHANNELS,
    onChannel: (channel) => {
      channels.add(channel)
      void serve(leases, channel).finally(() => channels.delete(channel))
    },
  }).catch(async (error: unknown) => {
    await leases.close()
    throw error
  })
  let closing: Promise<void> | undefined
  const close = (): Promise<void> => {
    closing ??= (async () => {
      await listener.close()
      await Promise.all([...channels].map((channel) => channel.close()))
      await leases.close()
    })()
    return closing
  }
  return { socket, list: () => leases.list(), close, [Symbol.asyncDispose]: close }
}

/** Answers one line by one line, until the peer ends or breaks the form. */
async function serve(leases: DirectLeases, channel: Channel): Promise<void> {
  try {
    for await (const line of readLines(channel, DIRECT_LIMITS.message)) {
      let answer: unknown
      try {
        answer = { ok: await act(leases, channel, line) }
      } catch (error) {
        answer = { error: told(error) }
      }
      if (!channel.write(Buffer.from(`${JSON.stringify(answer)}\n`))) await channel.drained()
    }
  } catch (error) {
    // A peer that goes away, or sends no lines, ends its own connection and nothing else.
    if (!CloudAppError.is(error)) throw error
  } finally {
    await channel.close()
  }
}

async function act(leases: DirectLeases, channel: Channel, line: string): Promise<DirectEnd | DirectLease[] | true> {
  const request = parseDirect('the request', RequestSchema, line)
  if (request.op === 'list') return leases.list()
  if (request.op === 'end') return leases.endBlock(request.issuer, request.block, request.hard)
  const { peer } = channel
  if (peer.kind !== 'unix' || peer.uid !== process.getuid?.()) {
    throw new CloudAppError('ERR_CLOUDAPP_DENIED', 'only the user that runs the supervisor may start leases')
  }
  await leases.start(request.lease)
  return true
}

/** What the peer is told of an error: the code and the text of ours, nothing of others. */
function told(error: unknown): { readonly code: string; readonly message: string; readonly vm?: string } {
  if (!CloudAppError.is(error)) return { code: 'ERR_CLOUDAPP_PROTOCOL', message: 'the supervisor failed' }
  return { code: error.code, message: error.message, ...(error.vm === undefined ? {} : { vm: error.vm }) }
}
