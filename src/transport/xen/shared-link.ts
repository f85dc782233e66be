import type { Channel, ChannelListener } from '../channel.js'
import { Link } from '../link.js'
import { askRelay, serveRelay } from './link-relay.js'
import { type ConnectVchanOptions, connectOnce, untilConnected } from './vchan-connect.js'

/** This process's links to services of other domains, by where in xenstore they are found. */
const links = new Map<string, OwnLink>()

/**
 * A stream to a service of another domain: in this process's link to it; in that of another process of this domain, which
 * passes it on; or in a new link.
 *
 * @throws CloudAppError as `connectVchan`; `ERR_CLOUDAPP_LIMIT` if too many streams are open
 */
export function openShared(options: ConnectVchanOptions, name: string): Promise<Channel> {
  const { domid, path } = options
  return untilConnected(options, async (neighbours) => {
    const own = links.get(path)
    if (own !== undefined) return own.open()
    const peer = { kind: 'vchan', domid, uuid: await neighbours.uuidOf(domid), local: neighbours.local } as const
    const passed = await askRelay(`${domid}-${name}`, peer)
    if (passed !== undefined) return passed
    const channel = await connectOnce(neighbours, options)
    return channel === undefined ? undefined : new OwnLink(channel, path, `${domid}-${name}`).open()
  })
}

/** The link of the process that has the vchan. It lives as long as a stream of that process does. */
class OwnLink {
  readonly #link: Link
  readonly #path: string
  readonly #relay: Promise<ChannelListener | undefined>
  #streams = 0

  constructor(channel: Channel, path: string, name: string) {
    this.#path = path
    this.#link = new Link(channel, { role: 'client' })
    this.#relay = serveRelay(name, this.#link)
    links.set(path, this)
    channel.closed.addEventListener('abort', () => this.#end(), { once: true })
  }

  open(): Channel {
    const stream = this.#link.open()
    this.#streams++
    const onEnd = () => {
      if (--this.#streams === 0) this.#end()
    }
    stream.closed.addEventListener('abort', onEnd, { once: true })
    return stream
  }

  #end(): void {
    if (links.get(this.#path) === this) links.delete(this.#path)
    void this.#link.close()
    void this.#relay.then((relay) => relay?.close())
  }
}

/**
 * Serves streams over the vchans that `serve` is given the callee of, one after another as programs of the client's domain
 * come and go. When it is closed it takes no new streams; those that exist live on.
 */
export async function serveShared(
  serve: (onChannel: (channel: Channel) => void) => Promise<ChannelListener>,
  onStream: (stream: Channel) => void,
): Promise<ChannelListener> {
  const served = new Set<Link>()
  const listener = await serve((channel) => {
    const link = new Link(channel, { role: 'server', onStream })
    served.add(link)
    channel.closed.addEventListener('abort', () => served.delete(link), { once: true })
  })
  const close = async () => {
    await listener.close()
    for (const link of served) link.finish()
  }
  return { address: listener.address, close, [Symbol.asyncDispose]: close }
}
