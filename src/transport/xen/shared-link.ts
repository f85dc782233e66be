import type { Channel, ChannelListener } from '../channel.js'
import { Link } from '../link.js'
import { askRelay, type Relay, serveRelay } from './link-relay.js'
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
    return channel === undefined ? undefined : OwnLink.over(channel, path, `${domid}-${name}`).open()
  })
}

/** The link of the process that has the vchan. It lives as long as a stream of that process does. */
class OwnLink {
  readonly #link: Link
  readonly #path: string
  readonly #relay: Promise<Relay | undefined>
  #streams = 0

  private constructor(channel: Channel, path: string, name: string) {
    this.#path = path
    this.#link = new Link(channel, { role: 'client' })
    this.#relay = serveRelay(name, this.#link)
    links.set(path, this)
    channel.closed.addEventListener('abort', () => this.#end(), { once: true })
  }

  static over(channel: Channel, path: string, name: string): OwnLink {
    return new OwnLink(channel, path, name)
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

/** A server's links with one domain: one after another, as its programs come and go. */
export class ServedLinks {
  readonly #onChannel: (channel: Channel) => void
  readonly #links = new Set<Link>()

  constructor(onChannel: (channel: Channel) => void) {
    this.#onChannel = onChannel
  }

  add(channel: Channel): void {
    const link = new Link(channel, { role: 'server', onStream: this.#onChannel })
    this.#links.add(link)
    channel.closed.addEventListener('abort', () => this.#links.delete(link), { once: true })
  }

  /** The listener whose channels these are: what takes no new channels takes no new streams. */
  of(listener: ChannelListener): ChannelListener {
    const close = async () => {
      await listener.close()
      for (const link of this.#links) link.finish()
    }
    return { address: listener.address, close, [Symbol.asyncDispose]: close }
  }
}
