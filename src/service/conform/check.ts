import type { KeyPair } from '../../capabilities/keys.js'
import { CloudAppError, type CloudAppErrorCode } from '../../errors.js'
import type { Channel } from '../../transport/channel.js'
import { openSession, type Session } from '../../transport/session.js'
import { channelPass } from '../client-link.js'
import type { Description, WireFinding, WirePage, WireRoot, WireService } from '../interface/protocol.js'

/** How a check ended. */
export interface CheckResult {
  readonly name: string
  /** What the interface asks for. */
  readonly what: string
  readonly outcome: 'passed' | 'failed' | 'skipped'
  /** Why it failed or was skipped. */
  readonly why?: string
}

/** One thing that docs/interface.md asks of a service domain. */
export interface Check {
  readonly name: string
  readonly what: string
  /** Only run where the caller allows it: it makes the service domain work, or changes a finding. */
  readonly allow?: 'run' | 'acknowledge'
  run(subject: Subject): Promise<void>
}

/** Thrown by a check that has nothing to look at. */
export class Skip extends Error {}

/** Thrown by a check that found a breach. */
export class Breach extends Error {}

/** A session with the service domain under test. */
export interface Opened {
  readonly session: Session<Disposable & WireRoot>
  readonly service: WireService
  readonly version: number
}

/** The service domain under test, as checks reach it. */
export class Subject {
  readonly #connect: () => Promise<Channel>
  readonly #sessions: Session<Disposable & WireRoot>[] = []
  readonly #channels: Channel[] = []

  constructor(
    connect: () => Promise<Channel>,
    /** A pass to show, or a key to make one with for each channel; the channel's peer otherwise. */
    readonly as: { readonly pass?: string | undefined; readonly key?: KeyPair | undefined } = {},
  ) {
    this.#connect = connect
  }

  /** A channel on which nothing was said yet. */
  async channel(): Promise<Channel> {
    const channel = await this.#connect()
    this.#channels.push(channel)
    return channel
  }

  /** A session of which nothing was asked yet. */
  async session(): Promise<Session<Disposable & WireRoot>> {
    return this.#begin(await this.channel())
  }

  async open(): Promise<Opened> {
    const channel = await this.channel()
    const session = this.#begin(channel)
    const ask = (pass?: string) =>
      session.settle(session.remote.open({ version: 1, ...(pass !== undefined && { pass }) }))
    const { pass, key } = this.as
    const opened = await ask(pass)
    // A TLS channel has proved the key itself.
    if (key === undefined || channel.peer.kind === 'tls') return { session, ...opened }
    const described = await call(session, () => opened.service.describe())
    return { session, ...(await ask(channelPass(key, channel, described))) }
  }

  #begin(channel: Channel): Session<Disposable & WireRoot> {
    const limits = { frameBytes: 8 * 1024 * 1024, depth: 16, items: 65_536 }
    const session = openSession<never>(channel, { limits }) as unknown as Session<Disposable & WireRoot>
    this.#sessions.push(session)
    return session
  }

  /** Ends what a check has opened. */
  async end(): Promise<void> {
    for (const session of this.#sessions.splice(0)) await session.close()
    for (const channel of this.#channels.splice(0)) await channel.close()
  }
}

/** @throws Breach unless `condition` holds. */
export function expect(condition: boolean, breach: string): asserts condition {
  if (!condition) throw new Breach(breach)
}

/** @throws Breach unless `work` fails with the code. Gives the error. */
export async function expectCode(
  opened: Opened | Session<Disposable & WireRoot>,
  code: CloudAppErrorCode,
  what: string,
  work: () => PromiseLike<unknown>,
): Promise<CloudAppError> {
  const session = 'session' in opened ? opened.session : opened
  try {
    await call(session, work)
  } catch (error) {
    if (CloudAppError.is(error, code)) return error
    const had = CloudAppError.is(error) ? `${error.code}: ${error.message}` : String(error)
    throw new Breach(`${what} must be refused with ${code}, and was with ${had}`)
  }
  throw new Breach(`${what} must be refused with ${code}, and was answered`)
}

/** One call; what the other side offers may not be what it should. */
export async function call<T>(session: Session<Disposable & WireRoot>, work: () => PromiseLike<T>): Promise<T> {
  return session.settle((async () => work())())
}

/** Everything the subject lists, page by page, up to `most`. */
export async function listed(
  { session, service }: Opened,
  query: { readonly limit?: number } & Record<string, unknown>,
  most: number,
): Promise<WireFinding[]> {
  const all: WireFinding[] = []
  for (let since: string | undefined; ; ) {
    const page: WirePage = await call(session, () =>
      service.findings.list({ ...query, ...(since !== undefined && { since }) } as never),
    )
    all.push(...page.findings)
    if (!page.more || page.next === undefined || all.length >= most) return all.slice(0, most)
    expect(page.next !== since, 'a page says that there is more, and its cursor stands still')
    since = page.next
  }
}

/** The same, or a skip where there is nothing. */
export async function some(opened: Opened, most: number): Promise<WireFinding[]> {
  const findings = await listed(opened, {}, most)
  if (findings.length === 0) throw new Skip('there are no findings that the asker may see')
  return findings
}

export type { Description }
