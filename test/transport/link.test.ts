import fc from 'fast-check'
import { describe, expect, it, vi } from 'vitest'
import { CloudAppError } from '../../src/errors.js'
import type { Channel } from '../../src/transport/channel.js'
import { Link, MOST_STREAMS } from '../../src/transport/link.js'
import { frame, Kind, preface, word } from '../../src/transport/link-wire.js'
import { memoryChannelPair } from '../../src/transport/memory.js'
import { WINDOW } from '../../src/transport/stream.js'
import { vchanPair } from '../../src/transport/xen/vchan-pair.js'
import { channelConformance } from '../conformance/channel.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

/** Two ends of a link, and what the server's end was given. */
function linked([near, far]: readonly [Channel, Channel] = memoryChannelPair()) {
  const taken: Channel[] = []
  const waiting: ((stream: Channel) => void)[] = []
  const onStream = (stream: Channel) => {
    const next = waiting.shift()
    if (next === undefined) taken.push(stream)
    else next(stream)
  }
  const server = new Link(far, { role: 'server', onStream })
  const client = new Link(near, { role: 'client' })
  const next = (): Promise<Channel> =>
    new Promise((resolve) => {
      const stream = taken.shift()
      if (stream === undefined) waiting.push(resolve)
      else resolve(stream)
    })
  const pair = async (): Promise<[Channel, Channel]> => {
    const stream = client.open()
    return [stream, await next()]
  }
  const close = () => Promise.all([client.close(), server.close()])
  return { client, server, pair, taken, close }
}

async function all(channel: Channel, bytes: number): Promise<Buffer> {
  const parts: Uint8Array[] = []
  for (let have = 0; have < bytes; ) {
    const chunk = await channel.read()
    if (chunk === undefined) break
    parts.push(chunk)
    have += chunk.length
  }
  return Buffer.concat(parts)
}

/** The server's end of a link whose client writes what it likes. */
function attacked() {
  const [near, far] = memoryChannelPair()
  const streams: Channel[] = []
  const server = new Link(far, { role: 'server', onStream: (stream) => streams.push(stream) })
  return { near, far, server, streams }
}

async function reasonOf({ closed }: { readonly closed: AbortSignal }): Promise<unknown> {
  if (!closed.aborted) await new Promise((resolve) => closed.addEventListener('abort', resolve))
  return closed.reason
}

describe('a stream, over memory', () => {
  channelConformance(async () => linked().pair())
})
describe('the second stream from the server to the client, over a vchan of 4096 bytes', () => {
  channelConformance(async () => {
    const { pair } = linked(vchanPair(4096))
    await pair()
    const [client, server] = await pair()
    return [server, client]
  })
})

describe('a link', () => {
  it('carries many streams at once, each with its own bytes', async () => {
    const { pair, close } = linked(vchanPair())
    const pairs = await Promise.all(Array.from({ length: MOST_STREAMS }, pair))
    const bytes = 1_000_003
    const done: number[] = []
    await Promise.all(
      pairs.map(async ([from, to], i) => {
        const reading = all(to, bytes)
        for (let sent = 0; sent < bytes; sent += 10_000) {
          if (!from.write(new Uint8Array(Math.min(10_000, bytes - sent)).fill(i + 1))) await from.drained()
        }
        const got = await reading
        done.push(i)
        expect(got.length).toBe(bytes)
        expect(got.every((byte) => byte === i + 1)).toBe(true)
      }),
    )
    expect(new Set(pairs.map(([from]) => Buffer.from(from.binding).toString('hex'))).size).toBe(MOST_STREAMS)
    await close()
  })

  it('is not held up by a stream that nobody reads', async () => {
    const { pair, close } = linked()
    const [stuck] = await pair()
    while (stuck.write(new Uint8Array(60_000))) await new Promise(setImmediate)
    const [from, to] = await pair()
    for (let i = 0; i < 100; i++) {
      from.write(new Uint8Array(60_000))
      expect((await all(to, 60_000)).length).toBe(60_000)
    }
    expect(stuck.queued).toBeGreaterThan(0)
    await close()
  })

  it('holds little more than what it was sent, in however small pieces that came', async () => {
    const { near, streams, server } = attacked()
    near.write(preface())
    near.write(frame(1, Kind.Open))
    const piece = frame(1, Kind.Data, new Uint8Array([7]))
    global.gc?.()
    const before = process.memoryUsage()
    // Each piece in a chunk of its own, most of which is for nobody.
    for (let i = 0; i < WINDOW; i++) {
      if (!near.write(piece.slice())) await near.drained()
    }
    while (near.queued > 0) await new Promise(setImmediate)
    global.gc?.()
    const after = process.memoryUsage()
    expect(after.arrayBuffers - before.arrayBuffers).toBeLessThan(8 * 1024 * 1024)
    expect((await all(streams[0] as Channel, WINDOW)).every((byte) => byte === 7)).toBe(true)
    await server.close()
  })

  it('refuses more streams than there may be, and takes one when one has ended', async () => {
    const { client, pair, close } = linked()
    const pairs = await Promise.all(Array.from({ length: MOST_STREAMS }, pair))
    expect(() => client.open()).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_LIMIT' }))
    await pairs[3]?.[0].close()
    const [from, to] = await pair()
    from.write(new Uint8Array([1]))
    expect(await to.read()).toEqual(new Uint8Array([1]))
    await close()
  })

  it('refuses more streams of a client that does not count', async () => {
    const { near, server, streams } = attacked()
    near.write(preface())
    for (let id = 1; id <= MOST_STREAMS + 1; id++) near.write(frame(id, Kind.Open))
    await vi.waitFor(() => expect(streams.length).toBe(MOST_STREAMS))
    expect((await all(near, 8 + 9)).subarray(8)).toEqual(
      Buffer.from(frame(MOST_STREAMS + 1, Kind.Refuse, new Uint8Array([1]))),
    )
    expect(server.closed.aborted).toBe(false)
    await server.close()
  })

  it('finishes what there is and refuses what is new', async () => {
    const { client, server, pair } = linked()
    const [from, to] = await pair()
    server.finish()
    const late = client.open()
    expect(await reasonOf(late)).toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
    from.write(new Uint8Array([3]))
    expect(await to.read()).toEqual(new Uint8Array([3]))
    await from.close()
    expect(await to.read()).toBeUndefined()
    await reasonOf(server)
    await reasonOf(client)
    expect(() => client.open()).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_CLOSED' }))
  })

  it('ends its streams with the channel it is in', async () => {
    const [near, far] = memoryChannelPair()
    const { pair } = linked([near, far])
    const [from, to] = await pair()
    const reading = to.read()
    await near.close()
    await expect(reading).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
    expect(await reasonOf(from)).toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })
})

describe('a link with a hostile peer', () => {
  const open = [preface(), frame(1, Kind.Open)]
  const window = Array.from({ length: 5 }, () => frame(1, Kind.Data, new Uint8Array(60_000)))

  it.each<[string, Uint8Array[]]>([
    ['another protocol', [new Uint8Array([0, 0, 0, 5, 1, 2, 3, 4])]],
    ['version 0', [new Uint8Array([...preface().subarray(0, 7), 0])]],
    ['a kind there is not', [preface(), frame(1, 9 as Kind)]],
    ['stream 0', [preface(), frame(0, Kind.Open)]],
    ['a frame longer than any', [...open, new Uint8Array([1, 0, 0, 0, 2, 0xf9, 0xff, 0])]],
    ['a data frame with nothing in it', [...open, frame(1, Kind.Data)]],
    ['an opening with something in it', [preface(), frame(1, Kind.Open, word(1))]],
    ['a number that was used', [...open, frame(1, Kind.Open)]],
    ['a stream that was not opened', [...open, frame(2, Kind.Data, word(1))]],
    ['more than the window', [...open, ...window]],
    ['more room than was taken', [...open, frame(1, Kind.Credit, word(1))]],
    ['bytes after an end', [...open, frame(1, Kind.Data, word(1)), frame(1, Kind.End), frame(1, Kind.Data, word(1))]],
    ['a refusal of what it opened', [...open, frame(1, Kind.Refuse, new Uint8Array([1]))]],
  ])('ends with ERR_CLOUDAPP_PROTOCOL at %s', async (_, frames) => {
    const { near, server, streams } = attacked()
    for (const bytes of frames) near.write(bytes)
    await reasonOf(server)
    if (streams[0] !== undefined) expect(await reasonOf(streams[0])).toMatchObject({ code: 'ERR_CLOUDAPP_PROTOCOL' })
  })

  it('ends when a server opens a stream', async () => {
    const [near, far] = memoryChannelPair()
    const client = new Link(near, { role: 'client' })
    const stream = client.open()
    far.write(preface())
    far.write(frame(2, Kind.Open))
    expect(await reasonOf(stream)).toMatchObject({ code: 'ERR_CLOUDAPP_PROTOCOL' })
  })

  it.each([
    ['tiny frames', Array.from({ length: 50_000 }, () => frame(1, Kind.Data, new Uint8Array(1)))],
    ['openings', Array.from({ length: 2_000 }, (_, i) => [frame(i + 2, Kind.Open), frame(i + 2, Kind.End)]).flat()],
  ])('does not keep the event loop from others with %s', async (_, frames) => {
    const { near, server } = attacked()
    let turns = 0
    const timer = () => {
      turns++
      if (!server.closed.aborted) setImmediate(timer)
    }
    near.write(Buffer.concat([...open, ...frames]))
    setImmediate(timer)
    void all(near, Infinity).catch(() => undefined)
    await near.close()
    await reasonOf(server)
    expect(turns).toBeGreaterThan(100)
  })

  it('ends when it asks for answers and reads none', async () => {
    const { near, server } = attacked()
    near.write(preface())
    for (let id = 1; !server.closed.aborted && id < 1_000_000; id++) {
      if (!near.write(frame(id, Kind.Open))) await near.drained()
    }
    expect(server.closed.aborted).toBe(true)
  })

  it('never throws anything else, whatever comes and however it is cut', async () => {
    const bytes = fc.uint8Array({ maxLength: 40 })
    const some = fc.oneof(
      bytes,
      fc
        .record({ id: fc.integer({ min: 0, max: 4 }), kind: fc.integer({ min: 0, max: 6 }), payload: bytes })
        .map(({ id, kind, payload }) => frame(id, kind as Kind, payload)),
    )
    await fc.assert(
      fc.asyncProperty(fc.array(some, { maxLength: 20 }), fc.integer({ min: 1, max: 30 }), async (frames, cut) => {
        const { near, server, streams } = attacked()
        const heard = all(near, Infinity).catch(() => undefined)
        const sent = Buffer.concat([preface(), ...frames])
        for (let at = 0; at < sent.length; at += cut) near.write(new Uint8Array(sent.subarray(at, at + cut)))
        const read = streams.map((stream) =>
          stream.read().catch((error: unknown) => expect(CloudAppError.is(error)).toBe(true)),
        )
        await near.close()
        await reasonOf(server)
        await Promise.all([...read, heard])
        for (const stream of streams)
          expect(CloudAppError.is(stream.closed.reason) || !stream.closed.aborted).toBe(true)
      }),
      { numRuns: 1000 },
    )
  })
})
