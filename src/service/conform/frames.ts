import { CloudAppError } from '../../errors.js'
import type { Channel } from '../../transport/channel.js'
import { encodeFrame, FrameReader } from '../../transport/frames.js'
import { Breach, type Check, expect, type Subject } from './check.js'

/** Reads messages until the peer ends; gives the last. */
async function untilEnd(channel: Channel): Promise<unknown> {
  const frames = new FrameReader()
  let last: unknown
  for (;;) {
    let chunk: Uint8Array | undefined
    try {
      chunk = await channel.read()
    } catch (error) {
      // A transport may tell an end as a break.
      if (CloudAppError.is(error, 'ERR_CLOUDAPP_CLOSED')) return last
      throw error
    }
    if (chunk === undefined) return last
    frames.push(chunk)
    for (let frame = frames.next(); frame !== undefined; frame = frames.next()) last = frame.value
  }
}

/** After an `open`, sends bytes that must end the session with a code. */
function mustEnd(name: string, what: string, bytes: () => readonly Uint8Array[]): Check {
  return {
    name,
    what: `${what} ends the session with ERR_CLOUDAPP_PROTOCOL`,
    async run(subject) {
      const channel = await subject.channel()
      channel.write(encodeFrame(['push', ['pipeline', 0, ['open'], [{ version: 1 }]]]))
      channel.write(encodeFrame(['pull', 1]))
      const opened = await firstMessage(channel)
      expect(Array.isArray(opened) && opened[0] === 'resolve', 'the session could not be opened')
      for (const part of bytes()) channel.write(part)
      const last = await untilEnd(channel)
      expect(
        Array.isArray(last) && last[0] === 'abort',
        'it ended without saying why: the last message must be an abort',
      )
      const error: unknown = last[1]
      const told = Array.isArray(error) ? (error[4] as { code?: unknown } | undefined) : undefined
      expect(told?.code === 'ERR_CLOUDAPP_PROTOCOL', `the abort has the code ${JSON.stringify(told?.code)}`)
      await survives(subject)
    },
  }
}

async function firstMessage(channel: Channel): Promise<unknown> {
  const frames = new FrameReader()
  for (;;) {
    const chunk = await channel.read()
    if (chunk === undefined) throw new Breach('the service domain ended the session before it answered')
    frames.push(chunk)
    const frame = frames.next()
    if (frame !== undefined) return frame.value
  }
}

/** What one client does must not reach another. */
async function survives(subject: Subject): Promise<void> {
  const { session, service } = await subject.open()
  await session.settle(service.describe())
}

const framed = (...body: number[]): Uint8Array[] => {
  const head = Buffer.alloc(4)
  head.writeUInt32BE(body.length)
  return [new Uint8Array(head), Uint8Array.from(body)]
}
const message = (value: unknown): Uint8Array[] => [encodeFrame(value)]
const call = (...expression: unknown[]): Uint8Array[] => message(['push', expression])
const pull = (id: number): Uint8Array[] => message(['pull', id])

/** Frames and messages of a hostile client: RFC 8949 and capnweb's protocol.md, narrowed. */
export const FRAME_CHECKS: readonly Check[] = [
  mustEnd('frames.oversize', 'A frame announced with 2 GiB', () => [Uint8Array.of(0x80, 0, 0, 0), new Uint8Array(64)]),
  mustEnd('frames.over-64k', 'A frame of more than 64 KiB', () => message(['push', 'x'.repeat(66_000)])),
  mustEnd('frames.empty', 'A frame without a value', () => framed()),
  mustEnd('frames.trailing', 'A frame with bytes after its value', () => framed(0x00, 0x00)),
  mustEnd('frames.cut', 'A frame whose value is cut short', () => framed(0x43, 0x01, 0x02)),
  mustEnd('frames.long-number', 'A number in a longer form than it needs', () => framed(0x18, 0x05)),
  mustEnd('frames.indefinite', 'A value of indefinite length', () => framed(0x9f, 0x01, 0xff)),
  mustEnd('frames.tag', 'A tag', () => framed(0xc1, 0x00)),
  mustEnd('frames.unsorted', 'A map whose keys are out of order', () => framed(0xa2, 0x61, 0x62, 0, 0x61, 0x61, 0)),
  mustEnd('frames.repeated', 'A map with a key twice', () => framed(0xa2, 0x61, 0x61, 0, 0x61, 0x61, 1)),
  mustEnd('frames.utf8', 'Text that is not UTF-8', () => framed(0x62, 0xc3, 0x28)),
  mustEnd('frames.deep', 'A value nested deeper than 16 levels', () => framed(...new Array<number>(40).fill(0x81), 0)),
  mustEnd('frames.many', 'A frame of more than 4,096 values', () => message(['push', new Array(5000).fill(0)])),
  {
    name: 'frames.truncated',
    what: 'A client that goes away inside a frame harms no other',
    async run(subject) {
      const channel = await subject.channel()
      channel.write(Uint8Array.of(0, 0, 0, 100, 0x83))
      await channel.close()
      await survives(subject)
    },
  },
  {
    name: 'frames.cut-anywhere',
    what: 'Frames may come in pieces of any length',
    async run(subject) {
      const channel = await subject.channel()
      const asked = [...message(['push', ['pipeline', 0, ['open'], [{ version: 1 }]]]), ...pull(1)]
      for (const byte of Buffer.concat(asked)) {
        channel.write(Uint8Array.of(byte))
        await channel.drained()
      }
      const answer = await firstMessage(channel)
      expect(Array.isArray(answer) && answer[0] === 'resolve', 'the call was not answered')
    },
  },
  mustEnd('session.no-message', 'A value that is no message', () => message({ push: 1 })),
  mustEnd('session.unknown', 'A message of an unknown kind', () => message(['shout', 1])),
  mustEnd('session.remap', 'A remap', () => call('remap', 0, ['open'], [], [['value', 1]])),
  mustEnd('session.nested-call', 'A call inside arguments', () =>
    call('pipeline', 0, ['open'], [['pipeline', 0, ['open'], []]]),
  ),
  mustEnd('session.client-stub', 'A stub from the client', () => call('pipeline', 0, ['open'], [['export', -1]])),
  mustEnd('session.stream', 'A stream from the client', () => message(['pipe'])),
  mustEnd('session.calls', 'More than 256 calls held at once', () =>
    Array.from({ length: 300 }, () => call('pipeline', 0, ['open'], [{ version: 1 }])).flat(),
  ),
]
