import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it } from 'vitest'
import { CloudAppError } from '../../src/errors.js'
import type { Channel } from '../../src/transport/channel.js'

/** Two joined ends of one connection. */
export type ChannelPair = readonly [Channel, Channel]

async function readExactly(channel: Channel, length: number): Promise<Buffer> {
  const chunks: Uint8Array[] = []
  let have = 0
  while (have < length) {
    const chunk = await channel.read()
    if (chunk === undefined) break
    chunks.push(chunk)
    have += chunk.length
  }
  return Buffer.concat(chunks)
}

/** What every {@link Channel} must do. Call inside a `describe`. */
export function channelConformance(make: () => Promise<ChannelPair>): void {
  async function withPair(use: (a: Channel, b: Channel) => Promise<void>): Promise<void> {
    const [a, b] = await make()
    try {
      await use(a, b)
    } finally {
      await Promise.all([a.close(), b.close()])
    }
  }

  it('carries bytes both ways in order', () =>
    withPair(async (a, b) => {
      const sent = Buffer.from(Array.from({ length: 3000 }, (_, i) => i & 0xff))
      for (let at = 0; at < sent.length; at += 7) a.write(new Uint8Array(sent.subarray(at, at + 7)))
      b.write(new Uint8Array([1, 2, 3]))
      expect((await readExactly(b, sent.length)).equals(sent)).toBe(true)
      expect([...(await readExactly(a, 3))]).toEqual([1, 2, 3])
    }))

  it('has one binding at both ends, and another for another connection', () =>
    withPair(async (a, b) => {
      expect(a.binding.length).toBeGreaterThanOrEqual(32)
      expect(Buffer.from(a.binding).equals(b.binding)).toBe(true)
    }))

  it('holds a sender back while nobody reads, and loses nothing', () =>
    withPair(async (a, b) => {
      const block = new Uint8Array(65_536).fill(7)
      let sent = 0
      let waiting = Promise.resolve()
      // What lies between the two ends takes some, too: until nothing moves for a while.
      for (let moves = true; moves; ) {
        for (let more = true; more; sent += block.length) {
          if (sent > 64 * 1024 * 1024) throw new Error('the channel never pushed back')
          more = a.write(block.slice())
        }
        waiting = a.drained()
        moves = await Promise.race([waiting.then(() => true), sleep(300).then(() => false)])
      }
      expect(a.queued).toBeGreaterThan(0)
      expect((await readExactly(b, sent)).length).toBe(sent)
      await waiting
    }))

  it('delivers what was written before a close, then ends', () =>
    withPair(async (a, b) => {
      a.write(new Uint8Array(100_000).fill(9))
      const closing = a.close()
      expect((await readExactly(b, 100_000)).length).toBe(100_000)
      expect(await b.read()).toBeUndefined()
      expect(await b.read()).toBeUndefined()
      await closing
      expect(a.closed.aborted).toBe(true)
      expect(CloudAppError.is(a.closed.reason, 'ERR_CLOUDAPP_CLOSED')).toBe(true)
    }))

  it('rejects a read that waits when it is closed here, and any later one', () =>
    withPair(async (a) => {
      const waiting = a.read()
      const failed = expect(waiting).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
      await a.close()
      await failed
      await expect(a.read()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
      a.write(new Uint8Array([1]))
      await a.drained()
      await a.close()
    }))

  it('closes within a second or so though the peer does not read', () =>
    withPair(async (a) => {
      while (a.write(new Uint8Array(65_536))) {}
      const closing = a.close()
      // Who waits for room before it closed has some, or it has closed by then.
      const { queued } = a
      await a.drained()
      if (!a.closed.aborted) expect(a.queued).toBeLessThan(Math.max(queued, 1))
      await closing
      expect(a.closed.aborted).toBe(true)
    }))

  it('refuses two reads at once', () =>
    withPair(async (a, b) => {
      const first = a.read()
      await expect(a.read()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
      b.write(new Uint8Array([5]))
      expect([...((await first) ?? [])]).toEqual([5])
    }))
}
