import { setTimeout as sleep } from 'node:timers/promises'
import { CloudAppError } from '../../errors.js'
import { checked, loadShim } from '../../native/shim.js'
import { checkOptions } from '../../options.js'
import type { Channel } from '../channel.js'
import { domainLives, Neighbours } from './neighbours.js'
import { attach, bindingOf } from './vchan.js'
import { VchanChannel, vchanInfo } from './vchan-channel.js'
import { wakeCost } from './wake-cost.js'
import type { XenStore } from './xenstore.js'

/** How long until an attempt that failed is repeated though xenstore told of no change, in ms. */
const AGAIN = 200

export interface ConnectVchanOptions {
  /** The server's domain, by number. */
  readonly domid: number
  /** The whole path in xenstore, as the server has it. */
  readonly path: string
  /** ms until ERR_CLOUDAPP_NOT_FOUND if no server is there. 10,000 by default. */
  readonly timeout?: number
  readonly signal?: AbortSignal
}

/**
 * The client's end of a vchan; wire-compatible with libxenvchan. Waits for the server to be there.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` if no server came within `timeout`; `ERR_CLOUDAPP_PROTOCOL` if what it
 *   shares is malformed; `ERR_CLOUDAPP_UNSUPPORTED` outside Xen; `ERR_CLOUDAPP_ABORTED`.
 */
export async function connectVchan(options: ConnectVchanOptions): Promise<Channel> {
  checkOptions('connectVchan', options, ['domid', 'path', 'timeout', 'signal'])
  return untilConnected(options, (neighbours) => connectOnce(neighbours, options))
}

/** Repeats what finds a server, until there is one. @throws CloudAppError as {@link connectVchan} */
export async function untilConnected(
  { domid, path, timeout = 10_000, signal }: ConnectVchanOptions,
  attempt: (neighbours: Neighbours) => Promise<Channel | undefined>,
): Promise<Channel> {
  const neighbours = await Neighbours.acquire()
  const limit = AbortSignal.timeout(timeout)
  const until = signal === undefined ? limit : AbortSignal.any([limit, signal])
  let last: unknown
  try {
    while (!until.aborted) {
      const channel = await attempt(neighbours).catch((error: unknown) => {
        if (!CloudAppError.is(error) || !PASSING.has(error.code)) throw error
        last = error
        return undefined
      })
      if (channel !== undefined) return channel
      // Nobody will come who has gone: who connects can ask anew which domain it is now.
      if (!domainLives(domid)) break
      await sleep(AGAIN, undefined, { signal: until }).catch(() => undefined)
    }
  } finally {
    await neighbours.release()
  }
  if (signal?.aborted) {
    throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'Connecting was aborted', { cause: signal.reason })
  }
  const which = `of domain ${domid} at ${path}`
  const why = CloudAppError.is(last, 'ERR_CLOUDAPP_SOURCE')
    ? `The server ${which} did not take the connection within ${timeout} ms (${last.message}): it serves one client of a domain at a time; is another connected that does not share it, or has it died?`
    : `No server ${which}, within ${timeout} ms or since that domain has ended`
  throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', why, { cause: last })
}

/** What a server that is about to start, or to take its next client, looks like. */
const PASSING: ReadonlySet<string> = new Set([
  'ERR_CLOUDAPP_DENIED',
  'ERR_CLOUDAPP_SOURCE',
  'ERR_CLOUDAPP_NOT_FOUND',
  'ERR_CLOUDAPP_CLOSED',
])

/** One attempt; undefined if no server is there. */
export async function connectOnce(
  neighbours: Neighbours,
  { domid, path }: { readonly domid: number; readonly path: string },
): Promise<VchanChannel | undefined> {
  const { store, local } = neighbours
  const [ref, port] = await Promise.all([number(store, `${path}/ring-ref`), number(store, `${path}/event-channel`)])
  if (ref === undefined || port === undefined) return undefined
  const uuid = await neighbours.uuidOf(domid)
  const wakeUs = await wakeCost(local.domid)
  const shim = loadShim()
  const words = new Uint32Array(8)
  const handle = checked(shim, shim.ca_vchan_connect(domid, ref, port, new Uint8Array(words.buffer)))
  const peer = { kind: 'vchan', domid, uuid, local } as const
  const info = vchanInfo(words)
  const binding = bindingOf(domid, local.domid, info)
  return attach(neighbours, new VchanChannel(shim, handle, info, peer, binding, wakeUs), domid, `${path}/ring-ref`)
}

async function number(store: XenStore, path: string): Promise<number | undefined> {
  const text = await store.read(path)
  if (text === undefined) return undefined
  const value = Number(text)
  if (/^\d{1,10}$/.test(text) && value < 0xffff_ffff) return value
  throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `xenstore's ${path} is no number`)
}
