import { mkdir } from 'node:fs/promises'
import { CloudAppError } from '../../errors.js'
import type { Channel, ChannelListener, PeerIdentity } from '../channel.js'
import type { Link } from '../link.js'
import { connectUnix, listenUnix } from '../unix.js'

/**
 * Where the process that has the vchan to a service passes streams on to other processes of its domain. Only root may look
 * into the folder, as only root may open Xen's devices.
 */
const FOLDER = '/run/cloudapp/vchan'

/** What the relay says first: one of these and, after OPEN, the stream's binding. */
const OPEN = 0
const FULL = 1
const BINDING = 32

/** How long the process that has the vchan may take to answer, in ms. */
const ANSWERS = 2000

const socketOf = (name: string, folder: string): string => `${folder}/${name}.sock`

/**
 * Lets other processes of this domain open streams in a link. Undefined where that can not be: not for root, or another
 * process does so already.
 */
export async function serveRelay(name: string, link: Link, folder = FOLDER): Promise<ChannelListener | undefined> {
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 })
    return await listenUnix({ path: socketOf(name, folder), mode: 0o600, onChannel: (channel) => pass(channel, link) })
  } catch {
    // Then each process needs the vchan for itself, and is told so when it can not have it.
    return undefined
  }
}

function pass(channel: Channel, link: Link): void {
  let stream: Channel
  try {
    stream = link.open()
  } catch (error) {
    if (CloudAppError.is(error, 'ERR_CLOUDAPP_LIMIT')) channel.write(new Uint8Array([FULL]))
    void channel.close()
    return
  }
  channel.write(new Uint8Array([OPEN, ...stream.binding]))
  void copy(channel, stream)
  void copy(stream, channel)
}

/** Until either ends; what was read before is passed on. */
async function copy(from: Channel, to: Channel): Promise<void> {
  try {
    for (let chunk = await from.read(); chunk !== undefined && !to.closed.aborted; chunk = await from.read()) {
      if (!to.write(chunk)) await to.drained()
    }
  } catch {
    // It broke: the other end is told by the end of its own.
  }
  await Promise.all([from.close(), to.close()])
}

/**
 * A stream in the link of another process of this domain, or undefined if there is none.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_LIMIT` if it has too many
 */
export async function askRelay(name: string, peer: PeerIdentity, folder = FOLDER): Promise<Channel | undefined> {
  let channel: Channel
  try {
    channel = await connectUnix({ path: socketOf(name, folder), timeout: ANSWERS })
  } catch {
    return undefined
  }
  const { kind, uid } = channel.peer as Extract<PeerIdentity, { kind: 'unix' }>
  if (kind === 'unix' && (uid === 0 || uid === process.getuid?.())) {
    const limit = setTimeout(() => void channel.close(), ANSWERS)
    try {
      return await greeted(channel, peer)
    } finally {
      clearTimeout(limit)
    }
  }
  await channel.close()
  return undefined
}

async function greeted(channel: Channel, peer: PeerIdentity): Promise<Channel | undefined> {
  let got: Uint8Array = new Uint8Array(0)
  while (got.length < 1 + BINDING && got[0] !== FULL) {
    const chunk = await channel.read().catch(() => undefined)
    // It ends just now.
    if (chunk === undefined) {
      await channel.close()
      return undefined
    }
    got = Buffer.concat([got, chunk])
  }
  if (got[0] === OPEN) {
    return new PassedChannel(channel, peer, new Uint8Array(got.subarray(1, 1 + BINDING)), got.subarray(1 + BINDING))
  }
  await channel.close()
  if (got[0] !== FULL) return undefined
  throw new CloudAppError('ERR_CLOUDAPP_LIMIT', 'The programs of this domain have too many streams open to one service')
}

/** A channel that another process of this domain passes on. */
class PassedChannel implements Channel {
  readonly #channel: Channel
  #early: Uint8Array | undefined

  constructor(
    channel: Channel,
    readonly peer: PeerIdentity,
    readonly binding: Uint8Array,
    early: Uint8Array,
  ) {
    this.#channel = channel
    this.#early = early.length > 0 ? early : undefined
  }

  get closed(): AbortSignal {
    return this.#channel.closed
  }

  get queued(): number {
    return this.#channel.queued
  }

  read(): Promise<Uint8Array | undefined> {
    const early = this.#early
    if (early === undefined) return this.#channel.read()
    this.#early = undefined
    return Promise.resolve(early)
  }

  write(bytes: Uint8Array): boolean {
    return this.#channel.write(bytes)
  }

  drained(): Promise<void> {
    return this.#channel.drained()
  }

  close(): Promise<void> {
    return this.#channel.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}
