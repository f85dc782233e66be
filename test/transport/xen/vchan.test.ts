import { describe, expect, it, vi } from 'vitest'
import { vchanPair } from '../../../src/transport/xen/vchan-pair.js'
import { channelConformance } from '../../conformance/channel.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

for (const ring of [1024, 4096, 65_536, 1_048_576]) {
  describe(`vchan over the memory of one process, rings of ${ring} bytes`, () => {
    channelConformance(async () => vchanPair(ring))
  })
}

describe('vchan', () => {
  it('carries pieces of every size around its ring', async () => {
    const [a, b] = vchanPair(1024)
    const sent = new Uint8Array(3000).map((_, i) => (i * 7) & 0xff)
    for (let size = 1; size <= sent.length; size += size < 1100 ? 1 : 97) {
      a.write(sent.slice(0, size))
      let have = 0
      while (have < size) {
        const chunk = (await b.read()) as Uint8Array
        expect(Buffer.from(chunk).equals(Buffer.from(sent.subarray(have, have + chunk.length)))).toBe(true)
        have += chunk.length
      }
      expect(have).toBe(size)
    }
    await Promise.all([a.close(), b.close()])
  })

  it('moves much both ways at once', async () => {
    const [a, b] = vchanPair(65_536)
    const total = 64 * 1024 * 1024
    const send = async (channel: typeof a) => {
      for (let sent = 0; sent < total; sent += 100_000) {
        if (!channel.write(new Uint8Array(Math.min(100_000, total - sent)))) await channel.drained()
      }
    }
    const receive = async (channel: typeof a) => {
      let have = 0
      while (have < total) have += ((await channel.read()) as Uint8Array).length
      return have
    }
    const [, , left, right] = await Promise.all([send(a), send(b), receive(a), receive(b)])
    expect([left, right]).toEqual([total, total])
    await Promise.all([a.close(), b.close()])
  })

  it('lets the event loop turn while its ends are always at work', async () => {
    const [a, b] = vchanPair(4096)
    const rounds = 2000
    let turns = 0
    let done = false
    const turn = () => {
      turns++
      if (!done) setImmediate(turn)
    }
    setImmediate(turn)
    for (let i = 0; i < rounds; i++) {
      a.write(new Uint8Array([i]))
      // It is in the ring then.
      await new Promise((resolve) => process.nextTick(() => process.nextTick(resolve)))
      expect(await b.read()).toEqual(new Uint8Array([i]))
    }
    done = true
    expect(turns).toBeGreaterThan(rounds / 64)
    await Promise.all([a.close(), b.close()])
  })
})
