import { RpcTarget } from 'capnweb'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { CloudAppError } from '../../src/errors.js'
import type { Channel } from '../../src/transport/channel.js'
import { deferred } from '../../src/transport/deferred.js'
import { encodeFrame, FrameReader } from '../../src/transport/frames.js'
import { memoryChannelPair } from '../../src/transport/memory.js'
import { openSession, type Session, type SessionOptions } from '../../src/transport/session.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const open: { close(): Promise<void> }[] = []
const raws: Channel[] = []
afterEach(async () => {
  // A peer that does not read makes a close linger.
  for (const raw of raws.splice(0)) void drain(raw)
  await Promise.all(open.splice(0).map((handle) => handle.close()))
})

async function drain(channel: Channel): Promise<void> {
  while ((await channel.read().catch(() => undefined)) !== undefined) {}
}

/** What comes in on a raw channel, message by message. */
async function* messages(channel: Channel): AsyncGenerator<unknown[]> {
  const reader = new FrameReader()
  for (;;) {
    for (let frame = reader.next(); frame !== undefined; frame = reader.next()) yield frame.value as unknown[]
    const chunk = await channel.read()
    if (chunk === undefined) return
    reader.push(chunk)
  }
}

class Child extends RpcTarget {
  name() {
    return 'child'
  }
}

class Main extends RpcTarget {
  running = 0
  most = 0
  gate = deferred<void>()

  echo(value: unknown) {
    return value
  }
  types(value: unknown) {
    return Object.prototype.toString.call(value)
  }
  child() {
    return new Child()
  }
  async wait() {
    this.running++
    this.most = Math.max(this.most, this.running)
    await this.gate.promise
    this.running--
    return 'done'
  }
  call(back: (n: number) => Promise<number>) {
    return back(41)
  }
  fail() {
    throw new CloudAppError('ERR_CLOUDAPP_DENIED', 'memory.write is not held', {
      right: 'memory.write',
      vm: 'web-1',
      address: 0xffff_ffff_8000_0000n,
      details: { held: ['memory.read'], at: 5n, retry: 7 },
      cause: new Error('secret cause'),
    })
  }
  crash() {
    throw Object.assign(new Error("ENOENT: no such file, open '/etc/secret'"), { path: '/etc/secret' })
  }
}

function sessions(options: SessionOptions = {}): { main: Main; client: Session<Main>; server: Session<undefined> } {
  const [a, b] = memoryChannelPair()
  const main = new Main()
  const server = openSession<undefined>(b, { main, ...options }) as unknown as Session<undefined>
  const client = openSession<Main>(a) as unknown as Session<Main>
  open.push(client, server)
  return { main, client, server }
}

/** A server session with a peer that writes what it likes. */
function attack(options: SessionOptions = {}) {
  const [raw, b] = memoryChannelPair()
  const main = new Main()
  const server = openSession<undefined>(b, { main, ...options })
  open.push(raw, server)
  raws.push(raw)
  const send = (...messages: unknown[]) => {
    for (const message of messages) raw.write(encodeFrame(message))
  }
  return { raw, main, server, send }
}

async function failure(call: Promise<unknown>): Promise<CloudAppError> {
  try {
    await call
  } catch (error) {
    return error as CloudAppError
  }
  throw new Error('the call did not fail')
}

/** The reason a session ended. */
async function ending(session: { readonly closed: AbortSignal }): Promise<CloudAppError> {
  if (!session.closed.aborted) await new Promise((resolve) => session.closed.addEventListener('abort', resolve))
  return session.closed.reason as CloudAppError
}

const call = (path: unknown, args: unknown = [], id: unknown = 0) => ['push', ['pipeline', id, path, args]]

describe('session', () => {
  it('carries values: typed arrays and bigints keep their type', async () => {
    const { client } = sessions()
    const values = [
      new Uint8Array([1, 2, 3]),
      new BigUint64Array([1n, 2n ** 64n - 1n]),
      new Int32Array([-1]),
      2n ** 64n - 1n,
      { a: [1, [2, null]], b: undefined, c: 1.5 },
      'text',
    ]
    for (const value of values)
      expect(await client.settle(client.remote.echo(value) as unknown as PromiseLike<unknown>)).toEqual(value)
    expect(await client.settle(client.remote.types(new BigUint64Array(1)) as unknown as PromiseLike<unknown>)).toBe(
      '[object BigUint64Array]',
    )
  })

  it('sends a BigUint64Array as its bytes', async () => {
    const { raw, send } = attack()
    send(call(['echo'], [['bytes', new Uint8Array(8), 'BigUint64Array']]), ['pull', 1])
    const { value } = await messages(raw).next()
    expect(value).toEqual(['resolve', 1, ['bytes', new Uint8Array(8), 'BigUint64Array']])
  })

  it('pipelines: a call on the result of a call is one round trip', async () => {
    const { client } = sessions()
    const child = client.remote.child() as unknown as { name(): Promise<string> }
    expect(await client.settle(child.name())).toBe('child')
  })

  it('carries errors with code, right, vm, address and details, without stack and cause', async () => {
    const { client } = sessions()
    const error = await failure(client.settle(client.remote.fail() as unknown as PromiseLike<unknown>))
    expect(CloudAppError.is(error, 'ERR_CLOUDAPP_DENIED')).toBe(true)
    expect(error).toMatchObject({
      message: 'memory.write is not held',
      right: 'memory.write',
      vm: 'web-1',
      address: 0xffff_ffff_8000_0000n,
      details: { held: ['memory.read'], at: 5n, retry: 7 },
    })
    expect(JSON.stringify([error.stack, String(error.cause)])).not.toMatch(/secret|Main\.fail/)
  })

  it('tells the peer nothing of a foreign error but its class', async () => {
    const { client } = sessions()
    const error = await failure(client.settle(client.remote.crash() as unknown as PromiseLike<unknown>))
    expect(CloudAppError.is(error)).toBe(true)
    expect(JSON.stringify([error.message, error.stack, error.details])).not.toMatch(/secret|ENOENT/)
  })

  it('bounds what a hostile peer puts into an error', async () => {
    const [raw, b] = memoryChannelPair()
    const client = openSession<Main>(b)
    open.push(raw, client)
    raws.push(raw)
    const answer = client
      .settle(client.remote.child() as unknown as PromiseLike<unknown>)
      .catch((e: CloudAppError) => e)
    const details: Record<string, unknown> = { code: 'x' }
    for (let i = 0; i < 100; i++) details[`key${i}`.padEnd(200, 'k')] = 'v'.repeat(5000)
    const props = { code: 'ERR_CLOUDAPP_DENIED', details, right: 'r'.repeat(5000), stack: 'evil' }
    raw.write(encodeFrame(['reject', 1, ['error', 'TypeError', 'm'.repeat(100_000), 'evil stack', props]]))
    const error = (await answer) as CloudAppError
    expect(error.code).toBe('ERR_CLOUDAPP_DENIED')
    expect(error.message.length).toBe(2000)
    expect(error.right?.length).toBe(256)
    expect(Object.keys(error.details ?? {}).length).toBe(32)
    expect(error.stack).not.toMatch(/evil/)
  })

  it('ends calls that wait with the reason the session ended', async () => {
    const { client, server } = sessions()
    const waiting = client
      .settle(client.remote.wait() as unknown as PromiseLike<unknown>)
      .catch((e: CloudAppError) => e)
    await client.settle(client.remote.echo(1) as unknown as PromiseLike<unknown>)
    await server.close()
    expect(await waiting).toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
    expect((await ending(client)).code).toBe('ERR_CLOUDAPP_CLOSED')
    const late = await client
      .settle(client.remote.echo(1) as unknown as PromiseLike<unknown>)
      .catch((e: CloudAppError) => e)
    expect(late).toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  it('stops waiting when the caller aborts, and tells the peer', async () => {
    const { client, main } = sessions()
    const abort = new AbortController()
    let told = 0
    const waiting = client.settle(client.remote.wait() as PromiseLike<unknown>, {
      signal: abort.signal,
      cancel: () => told++,
    })
    abort.abort()
    await expect(waiting).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_ABORTED' })
    expect(told).toBe(1)
    main.gate.resolve()
  })

  it('lets a caller pass a function only where stubs are allowed', async () => {
    const back = (n: number) => Promise.resolve(n + 1)
    const yes = sessions({ allowStubs: true })
    expect(await yes.client.settle(yes.client.remote.call(back) as unknown as PromiseLike<unknown>)).toBe(42)
    const no = sessions()
    const error = await no.client
      .settle(no.client.remote.call(back) as unknown as PromiseLike<unknown>)
      .catch((e: CloudAppError) => e)
    expect(error).toMatchObject({ code: 'ERR_CLOUDAPP_PROTOCOL', message: expect.stringMatching(/stub/) })
  })
})

describe('a hostile peer', () => {
  it.each<[string, unknown[], RegExp]>([
    ['remap', [['push', ['remap', 0, ['echo'], [], [['value', 1]]]]], /remap/],
    ['remap inside arguments', [call(['echo'], [['remap', 0, [], [], []]])], /remap/],
    ['remap inside an object inside arguments', [call(['echo'], [{ a: [[['remap', 0, [], [], []]]] }])], /remap/],
    ['a call inside arguments', [call(['echo'], [['pipeline', 0, ['echo'], []]])], /call inside/],
    ['a stub', [call(['echo'], [['export', -1]])], /stub/],
    ['a promise of its own', [call(['echo'], [['promise', -1]])], /stub/],
    ['a stream', [['stream', ['pipeline', 0, ['echo'], []]]], /stream/],
    ['a pipe', [['pipe']], /stream/],
    ['a request of fetch', [call(['echo'], [['request', 'http://localhost/', {}]])], /kind of value/],
    ['a blob', [call(['echo'], [['blob', 'text/plain', ['readable', 1]]])], /kind of value/],
    ['a long path', [call(new Array(9).fill('echo'))], /path/],
    ['a path step that is an object', [call([{}])], /path/],
    ['an answer to no call', [['resolve', 1, 5]], /no call/],
    ['an answer to the main object', [['resolve', 0, 5]], /no call/],
    // It would reject, unheard, in the process that is attacked, and end it.
    ['a promise in an answer to what was never asked', [['resolve', -3, ['promise', 6]]], /no call/],
    ['a second refusal', [['reject', -1, ['error', 'Error', 'x']]], /no call/],
    ['a release of the main object', [['release', 0, 1]], /release/],
    ['a negative release', [call(['echo']), ['release', 1, -5]], /release/],
    ['a message that is no array', [{ push: 1 }], /no array/],
    ['an unknown message', [['nope']], /unknown/],
    ['a bigint of a million digits', [call(['echo'], [['bigint', '9'.repeat(1_000_000)]])], /bigint/],
    ['a call on a fraction', [call(['echo'], [], 0.5)], /identifier/],
    ['nesting', [call(['echo'], [JSON.parse('['.repeat(60) + ']'.repeat(60))])], /nesting/],
  ])('is cut off for %s', async (_, messages, why) => {
    const { send, server } = attack()
    send(...messages)
    const reason = await ending(server)
    expect(reason.code).toBe('ERR_CLOUDAPP_PROTOCOL')
    expect(reason.message).toMatch(why)
  })

  it('is cut off for a frame past the size limit, and told why', async () => {
    const { raw, server } = attack({ limits: { frameBytes: 1000 } })
    raw.write(new Uint8Array([0, 0, 0x10, 0]))
    expect((await ending(server)).message).toMatch(/limit of 1000/)
    const reader = new FrameReader()
    reader.push((await raw.read()) ?? new Uint8Array())
    expect(reader.next()?.value).toMatchObject([
      'abort',
      ['error', 'CloudAppError', expect.stringMatching(/limit of 1000/), null, {}],
    ])
  })

  it('is cut off for ending inside a frame', async () => {
    const { raw, server } = attack()
    raw.write(new Uint8Array([0, 0, 0, 9, 1]))
    await raw.close()
    expect((await ending(server)).code).toBe('ERR_CLOUDAPP_PROTOCOL')
  })

  it('is cut off for holding more calls than allowed', async () => {
    const { send, server } = attack({ limits: { calls: 100 } })
    for (let i = 0; i <= 100; i++) send(call(['echo'], [1]))
    expect((await ending(server)).message).toMatch(/more than 100 calls/)
  })

  it('is held back while many of its calls are unanswered, and served later', async () => {
    const { main, client, server } = sessions({ limits: { running: 5 } })
    const answers = Array.from({ length: 20 }, () =>
      client.settle(client.remote.wait() as unknown as PromiseLike<unknown>),
    )
    while (server.stats().running < 5) await new Promise((resolve) => setImmediate(resolve))
    for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve))
    expect(server.stats().running).toBe(5)
    main.gate.resolve()
    expect(await Promise.all(answers)).toEqual(new Array(20).fill('done'))
    expect(server.stats().running).toBe(0)
  })

  it('that does not read its answers is not read either', async () => {
    let calls = 0
    class Big extends RpcTarget {
      big() {
        calls++
        return new Uint8Array(1024 * 1024)
      }
    }
    const [slow, b] = memoryChannelPair()
    raws.push(slow)
    open.push(slow, openSession<undefined>(b, { main: new Big() }))
    for (let id = 1; id <= 200; id++) slow.write(encodeFrame(call(['big'])).slice())
    for (let id = 1; id <= 200; id++) slow.write(encodeFrame(['pull', id]))
    for (let id = 201; id <= 400; id++) slow.write(encodeFrame(call(['big'])))
    for (let i = 0; i < 500; i++) await new Promise((resolve) => setImmediate(resolve))
    expect(calls).toBe(200)
    expect(b.queued).toBeLessThan(80 * 1024 * 1024)
  })

  it('that leaves with its answers untaken is waited for once, and not as long as bytes are queued', async () => {
    const [near, far] = memoryChannelPair()
    raws.push(far)
    let asked = 0
    const channel: Channel = {
      peer: near.peer,
      binding: near.binding,
      closed: near.closed,
      queued: 8 << 20,
      read: () => near.read(),
      write: (bytes) => near.write(bytes),
      // As a socket that broke and is not yet closed.
      drained: async () => {
        if (++asked === 100) await near.close()
      },
      close: () => near.close(),
      [Symbol.asyncDispose]: () => near.close(),
    }
    const session = openSession(channel)
    open.push(session)
    await session.taken(1 << 20)
    expect(asked).toBeLessThan(5)
  })

  it('that floods leaves others their turn', async () => {
    // A call of 2 ms each: one turn of the loop for every one of them at most.
    class Busy extends RpcTarget {
      work() {
        const until = performance.now() + 2
        while (performance.now() < until) {}
      }
    }
    const { raw, send } = attack({ main: new Busy() })
    let turns = 0
    let flooding = true
    const turn = () => {
      turns++
      if (flooding) setImmediate(turn)
    }
    setImmediate(turn)
    for (let id = 1; id <= 50; id++) send(call(['work']), ['pull', id])
    for await (const message of messages(raw)) if (message[0] === 'resolve' && message[1] === 50) break
    flooding = false
    expect(turns).toBeGreaterThan(20)
  })
})
