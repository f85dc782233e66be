import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { encodeReads } from '../../src/broker/wire/read.js'
import { encodeSearch } from '../../src/broker/wire/scan.js'
import { attenuateToken } from '../../src/capabilities/attenuate.js'
import type { MintOptions } from '../../src/capabilities/mint.js'
import type { CloudAppError } from '../../src/errors.js'
import { PHYSICAL, type SearchResult } from '../../src/vmi/memory.js'
import type { FakeVm } from './fake-vm.js'
import { Host } from './host.js'
import { RawHolder, type RawStub } from './raw-holder.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

/** The verbs a job can be cancelled in, past our client, which counts its jobs itself. */
interface Stub extends RawStub {
  search(message: Uint8Array, job: unknown): Promise<Uint8Array>
  cancel(job: unknown): Promise<void>
  budget(): Promise<{ uses?: number }>
}

/** A search under way in the VM: it ends when the test says so, or when it is cancelled. */
interface Search {
  readonly cancelled: () => boolean
  finish(): void
}

let host: Host
/** In the order in which the VM was asked. */
const searches: Search[] = []
beforeAll(async () => {
  host = await Host.start()
  vi.spyOn((host.vms['fake:web'] as FakeVm).memory, 'search').mockImplementation(
    (_, options) =>
      new Promise<SearchResult>((resolve, reject) => {
        const signal = options?.signal as AbortSignal
        signal.addEventListener('abort', () => reject(signal.reason))
        const finish = () => resolve({ matches: [], end: 'complete', next: 0x1000n, consistent: false })
        searches.push({ cancelled: () => signal.aborted, finish })
      }),
  )
})
beforeEach(() => {
  searches.length = 0
})
afterAll(() => host[Symbol.asyncDispose]())

const mint = (change: Partial<MintOptions> = {}): Uint8Array => host.mint(change)

const wanted = encodeSearch({ space: PHYSICAL, start: 0n, end: 0x1000n, patterns: [new Uint8Array([1])], limit: 1 })
const one = encodeReads([{ space: PHYSICAL, at: 0x1000n, length: 4 }])

/** How a call ends: `answered`, or its code. */
function outcome(holder: RawHolder, call: Promise<unknown>): Promise<string> {
  return holder.session.settle(call).then(
    () => 'answered',
    (error: CloudAppError) => error.code,
  )
}

async function started(count: number): Promise<void> {
  await vi.waitFor(() => expect(searches.length).toBe(count), { timeout: 30_000 })
}

const stubOf = async (holder: RawHolder, token = mint()) => (await holder.redeem(token)) as Stub

describe('cancelling a job', () => {
  it('of a number that is used again reaches neither the one before nor the one after', async () => {
    const holder = await RawHolder.open(host)
    const stub = await stubOf(holder)
    const cancel = () => outcome(holder, stub.cancel(7))
    // Before there is a job of the number: nothing is kept of it.
    expect(await cancel()).toBe('answered')
    const first = outcome(holder, stub.search(wanted, 7))
    await started(1)
    // Whoever uses it twice at once is refused the second, and the first goes on.
    expect(await outcome(holder, stub.search(wanted, 7))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
    expect(await outcome(holder, stub.read(one, 7))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
    expect(searches.map(({ cancelled }) => cancelled())).toEqual([false])
    searches[0]?.finish()
    expect(await first).toBe('answered')
    expect(await cancel()).toBe('answered')
    const second = outcome(holder, stub.search(wanted, 7))
    await started(2)
    const other = outcome(holder, stub.search(wanted, 8))
    await started(3)
    expect(searches.map(({ cancelled }) => cancelled())).toEqual([false, false, false])
    expect(await cancel()).toBe('answered')
    expect(await second).toBe('ERR_CLOUDAPP_ABORTED')
    // Again, now that it has gone: the number is free, and the other job is none of it.
    expect(await cancel()).toBe('answered')
    expect(await outcome(holder, stub.read(one, 7))).toBe('answered')
    expect(searches.map(({ cancelled }) => cancelled())).toEqual([false, true, false])
    searches[2]?.finish()
    expect(await other).toBe('answered')
    await holder.close()
  })

  it('that waits for others of its session keeps it from beginning', async () => {
    const holder = await RawHolder.open(host)
    const stub = await stubOf(holder)
    const running = Array.from({ length: 8 }, (_, i) => outcome(holder, stub.search(wanted, i + 1)))
    await started(8)
    const waiting = outcome(holder, stub.search(wanted, 9))
    await holder.session.settle(stub.budget())
    await holder.session.settle(stub.cancel(9))
    for (const search of searches) search.finish()
    expect(await waiting).toBe('ERR_CLOUDAPP_ABORTED')
    expect(await Promise.all(running)).toEqual(Array(8).fill('answered'))
    expect(searches.length).toBe(8)
    await holder.close()
  })

  it('of another session, of another capability in the same one, or of none, has no effect', async () => {
    const [mine, theirs] = [await RawHolder.open(host), await RawHolder.open(host)]
    const token = mint()
    const stubs: [RawHolder, Stub][] = [
      [mine, await stubOf(mine, token)],
      // The same token once more, one derived from it, and the same token in another session.
      [mine, await stubOf(mine, token)],
      [mine, await stubOf(mine, attenuateToken(token, { holder: host.holder }))],
      [theirs, await stubOf(theirs, token)],
    ]
    const running: Promise<string>[] = []
    for (const [holder, stub] of stubs) {
      running.push(outcome(holder, stub.search(wanted, 3)))
      await started(running.length)
    }
    const unnumbered = outcome(mine, (stubs[0] as [RawHolder, Stub])[1].search(wanted, 0))
    await started(5)
    const cancelled = () => searches.map((search) => search.cancelled())
    const [first, second, , fourth] = stubs.map(([, stub]) => stub) as [Stub, Stub, Stub, Stub]
    for (const number of [0, 1, 2, 4, Number.MAX_SAFE_INTEGER]) await mine.session.settle(first.cancel(number))
    expect(cancelled()).toEqual([false, false, false, false, false])
    await mine.session.settle(second.cancel(3))
    expect(cancelled()).toEqual([false, true, false, false, false])
    await theirs.session.settle(fourth.cancel(3))
    expect(cancelled()).toEqual([false, true, false, true, false])
    for (const search of searches) search.finish()
    const ended = await Promise.all([...running, unnumbered])
    const aborted = 'ERR_CLOUDAPP_ABORTED'
    expect(ended).toEqual(['answered', aborted, 'answered', aborted, 'answered'])
    await Promise.all([mine.close(), theirs.close()])
  })

  it('of what is no number is refused with a code', async () => {
    const holder = await RawHolder.open(host)
    const stub = await stubOf(holder)
    for (const job of [-1, 0.5, 2 ** 53, '7', 7n, null, [7], { job: 7 }, new Uint8Array([7]), Number.NaN]) {
      expect(await outcome(holder, stub.cancel(job)), String(job)).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
      expect(await outcome(holder, stub.search(wanted, job)), String(job)).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
    }
    expect(searches).toEqual([])
    expect(await outcome(holder, stub.read(one, 0))).toBe('answered')
    await holder.close()
  })

  it('in a storm holds up nobody, ends no job but its own, and gives no use back', async () => {
    const [stormer, other] = [await RawHolder.open(host), await RawHolder.open(host)]
    const stub = await stubOf(stormer, mint({ uses: 20 }))
    const theirs = await stubOf(other)
    const bystander = outcome(other, theirs.search(wanted, 30))
    await started(1)
    const kept = outcome(stormer, stub.search(wanted, 999_999))
    await started(2)
    let over = false
    const storm = (async () => {
      for (let round = 0; round < 100; round++) {
        // Every number a few times, as fast as a session may call.
        await Promise.all(Array.from({ length: 60 }, (_, i) => stormer.session.settle(stub.cancel(round * 30 + i))))
      }
      over = true
    })()
    let served = 0
    while (!over) {
      expect(await outcome(other, theirs.read(one, 0))).toBe('answered')
      served++
    }
    await storm
    expect(served).toBeGreaterThan(10)
    expect(searches.map(({ cancelled }) => cancelled())).toEqual([false, false])
    // Nothing is left of it at the broker.
    await vi.waitFor(() => expect(stormer.session.stats().running).toBe(0))
    // A job that is cancelled has been used, as one that is not.
    for (let job = 1; job < 20; job++) {
      const search = outcome(stormer, stub.search(wanted, job))
      await started(2 + job)
      await stormer.session.settle(stub.cancel(job))
      expect(await search).toBe('ERR_CLOUDAPP_ABORTED')
    }
    expect(await outcome(stormer, stub.search(wanted, 20))).toBe('ERR_CLOUDAPP_LIMIT')
    searches[0]?.finish()
    searches[1]?.finish()
    expect([await bystander, await kept]).toEqual(['answered', 'answered'])
    await Promise.all([stormer.close(), other.close()])
  })

  it('many thousand at once, whose answers nobody lets go of, reaches nobody else', async () => {
    const [stormer, other] = [await RawHolder.open(host), await RawHolder.open(host)]
    const stub = await stubOf(stormer)
    const theirs = await stubOf(other)
    // Nobody waits for an answer, nor lets go of a call.
    const calls = Array.from({ length: 5000 }, (_, i) => outcome(stormer, stub.cancel(i)))
    const ended = new Set(await Promise.all(calls))
    for (const code of ended) expect(['answered', 'ERR_CLOUDAPP_PROTOCOL', 'ERR_CLOUDAPP_CLOSED']).toContain(code)
    expect(await outcome(other, theirs.read(one, 1))).toBe('answered')
    await Promise.all([stormer.close(), other.close()])
  })
})
