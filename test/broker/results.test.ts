import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { Results } from '../../src/broker/results.js'
import type { PublicKey } from '../../src/capabilities/keys.js'
import { type Deferred, deferred } from '../../src/transport/deferred.js'

const MIB = 1024 * 1024
const one = 'ed25519:one' as PublicKey
const two = 'ed25519:two' as PublicKey

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }))
afterEach(() => void vi.useRealTimers())

class Peer {
  readonly answers: { readonly bytes: number; readonly taken: Deferred<void> }[] = []
  closed = 0
  taken(bytes: number): Promise<void> {
    const taken = deferred<void>()
    this.answers.push({ bytes, taken })
    return taken.promise
  }
  close(): void {
    this.closed++
    for (const { taken } of this.answers) taken.resolve()
  }
}

const isDone = (promise: Promise<void> | undefined) =>
  Promise.race([Promise.resolve(promise).then(() => true), new Promise((r) => setImmediate(() => r(false)))])

it('are held to a bound for each delegate until they are taken', async () => {
  const results = new Results()
  const peer = new Peer()
  expect(results.enter(one, 40 * MIB)).toBeUndefined()
  const second = results.enter(one, 40 * MIB)
  expect(await isDone(second)).toBe(false)
  // Small ones pass, and so does another delegate.
  expect(results.enter(one, 1000)).toBeUndefined()
  results.leave(one, 1000, 1000, peer)
  expect(results.enter(two, 40 * MIB)).toBeUndefined()
  results.leave(one, 40 * MIB, 30 * MIB, peer)
  expect(await isDone(second)).toBe(false)
  peer.answers[0]?.taken.resolve()
  expect(await isDone(second)).toBe(true)
  // What turned out small, or failed, is not waited for.
  const third = results.enter(one, 64 * MIB)
  results.leave(one, 40 * MIB, 10, peer)
  expect(await isDone(third)).toBe(true)
  expect(peer.answers).toHaveLength(1)
})

it('end the connection of a peer that does not take them', async () => {
  const results = new Results()
  const [slow, quick] = [new Peer(), new Peer()]
  results.enter(one, 32 * MIB)
  results.leave(one, 32 * MIB, 32 * MIB, slow)
  results.enter(one, 32 * MIB)
  results.leave(one, 32 * MIB, 32 * MIB, quick)
  quick.answers[0]?.taken.resolve()
  const next = results.enter(one, 64 * MIB)
  await vi.advanceTimersByTimeAsync(59_000)
  expect([slow.closed, await isDone(next)]).toEqual([0, false])
  await vi.advanceTimersByTimeAsync(2000)
  expect([slow.closed, quick.closed, await isDone(next)]).toEqual([1, 0, true])
})
