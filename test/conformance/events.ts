/**
 * What every source of events must do, as plain functions: the synthetic guest and the event agent run them under vitest,
 * a real Xen host inside its control domain, where there is no vitest.
 */
import assert from 'node:assert/strict'
import { CloudAppError } from '../../src/errors.js'
import type { Captures, EventProgram } from '../../src/vmi/events/program.js'
import type { EventBatch, EventSource, EventStream } from '../../src/vmi/events/source.js'

/** One source, and how events are made there. */
export interface EventRig {
  readonly source: EventSource
  /** A trap that {@link fire} springs. */
  readonly trap: EventProgram['trap']
  /**
   * Makes events for a stream: exactly `count`, with rax counting from 0, where `exact`; at least so many otherwise, which
   * need not be told yet when it returns.
   */
  fire(stream: EventStream, count: number): Promise<void>
  readonly exact: boolean
}

export interface EventCase {
  readonly name: string
  /** Only where events can be counted out. */
  readonly exact?: true
  run(rig: EventRig): Promise<void>
}

const isError = (code: string) => (error: unknown) => CloudAppError.is(error) && error.code === code

/** Takes batches until there are `count` events. */
async function take<C extends Captures>(stream: EventStream<C>, count: number): Promise<EventBatch<C>[]> {
  const batches: EventBatch<C>[] = []
  const iterator = stream[Symbol.asyncIterator]()
  for (let seen = 0; seen < count; ) {
    const { value } = await iterator.next()
    if (value === undefined) throw new Error(`the stream ended after ${seen} events`)
    batches.push(value)
    seen += value.count
  }
  return batches
}

/** All events of some batches, column by column, as one list of rows. */
function serials(batches: readonly EventBatch[]): number[] {
  return batches.flatMap(({ columns }) => [...columns.serial].map(Number))
}

const any = (stream: unknown) => stream as EventStream

export const EVENT_CASES: readonly EventCase[] = [
  {
    name: 'gives batches of columns with serials that run on',
    async run({ source, trap, fire }) {
      await using stream = await source.subscribe({ trap, captures: { rax: { register: 'rax' } } })
      const wanted = 100
      const firing = fire(any(stream), wanted)
      const batches = await take(stream, wanted)
      await firing
      let time = 0n
      for (const { count, columns, dropped } of batches) {
        assert.equal(dropped, 0)
        for (const column of [columns.time, columns.vcpu, columns.serial, columns.cr3, columns.rip, columns.rax]) {
          assert.equal(column.length, count)
        }
        for (const at of columns.time) {
          assert.ok(at >= time, 'times ascend')
          time = at
        }
      }
      const found = serials(batches)
      assert.deepEqual(
        found,
        Array.from(found, (_, i) => i),
      )
    },
  },
  {
    name: 'evaluates predicates beside the event',
    exact: true,
    async run({ source, trap, fire }) {
      const predicate = [
        'and',
        ['==', ['&', { register: 'rax' }, 1n], 1n],
        ['or', ['<', { register: 'rax' }, 10n], ['>=', ['+', { register: 'rax' }, 1n], 100n]],
      ] as const
      await using stream = await source.subscribe({ trap, predicate, captures: { rax: { register: 'rax' } } })
      await fire(any(stream), 104)
      const batches = await take(stream, 8)
      const values = batches.flatMap(({ columns }) => [...columns.rax])
      assert.deepEqual(values, [1n, 3n, 5n, 7n, 9n, 99n, 101n, 103n])
      assert.deepEqual(await stream.counts(), { matched: 8, dropped: 0 })
    },
  },
  {
    name: 'makes a predicate false where memory can not be read, and says why a capture is short',
    exact: true,
    async run({ source, trap, fire }) {
      // Not canonical: nobody's memory.
      const nowhere = { memory: { register: 'rax', path: [2 ** 52] }, bytes: 16 } as const
      await using none = await source.subscribe({ trap, predicate: ['==', ['load', 1n << 62n, 8], 0n] })
      await using some = await source.subscribe({ trap, captures: { nowhere } })
      await fire(any(none), 5)
      await fire(any(some), 5)
      const [batch] = await take(some, 1)
      assert.equal(batch?.bytes('nowhere', 0).length, 0)
      assert.notEqual(batch?.fault('nowhere', 0), undefined)
      assert.deepEqual((await none.counts()).matched, 0)
    },
  },
  {
    name: 'tells each subscriber everything',
    async run({ source, trap, fire }) {
      await using first = await source.subscribe({ trap })
      await using second = await source.subscribe({ trap, captures: { rip2: { register: 'rip' } } })
      const firing = Promise.all([fire(any(first), 50), fire(any(second), 50)])
      const [a, b] = await Promise.all([take(first, 50), take(second, 50)])
      await firing
      for (const batches of [a, b]) {
        const found = serials(batches)
        assert.deepEqual(
          found,
          Array.from(found, (_, i) => i),
        )
      }
      assert.deepEqual([...(b[0]?.columns.rip2 ?? [])], [...(b[0]?.columns.rip ?? [])])
    },
  },
  {
    name: 'counts exactly what a stalled consumer loses, and spares the others',
    exact: true,
    async run({ source, trap, fire }) {
      const events = 20_000
      await using stalled = await source.subscribe({ trap }, { buffer: 64 * 1024 })
      await using quick = await source.subscribe({ trap })
      const taken = take(quick, events)
      await fire(any(stalled), events)
      await fire(any(quick), events)
      const all = await taken
      assert.equal(serials(all).length, events)
      assert.equal(
        all.reduce((sum, { dropped }) => sum + dropped, 0),
        0,
      )
      // As many as 64 KiB hold, and then no more.
      await until(async () => (await stalled.counts()).matched === events)
      const kept = Math.floor((64 * 1024) / 48)
      await until(async () => (await stalled.counts()).dropped === events - kept)
      const before = await take(stalled, kept)
      assert.deepEqual(
        serials(before),
        Array.from({ length: kept }, (_, i) => i),
      )
      // The next event tells how many were missed before it.
      await fire(any(stalled), 1)
      const [after] = await take(stalled, 1)
      assert.equal(after?.dropped, events - kept)
      assert.equal(after?.columns.serial[0], BigInt(events))
    },
  },
  {
    name: 'drops what is above the rate, and counts it',
    exact: true,
    async run({ source, trap, fire }) {
      await using stream = await source.subscribe({ trap, rate: 100 })
      await fire(any(stream), 5000)
      await until(async () => (await stream.counts()).matched === 5000)
      const { dropped } = await stream.counts()
      // A burst of one second, and what a slow machine's seconds add.
      assert.ok(dropped >= 3000 && dropped <= 4900, `${dropped} dropped`)
    },
  },
  {
    name: 'ends when it is closed, once and for good',
    async run({ source, trap, fire }) {
      const stream = await source.subscribe({ trap })
      await fire(any(stream), 5)
      await take(stream, 5)
      const waiting = stream[Symbol.asyncIterator]().next()
      await Promise.all([stream.close(), stream.close()])
      // What had come may be given out still; then it is over.
      for (let { done } = await waiting; done !== true; ) done = (await stream[Symbol.asyncIterator]().next()).done
      assert.ok(stream.closed.aborted)
      assert.ok(isError('ERR_CLOUDAPP_CLOSED')(stream.closed.reason))
      assert.ok((await stream.counts()).matched >= 5)
      await stream.close()
    },
  },
  {
    name: 'ends when its loop is left',
    async run({ source, trap, fire }) {
      const stream = await source.subscribe({ trap })
      await fire(any(stream), 5)
      for await (const { count } of stream) {
        assert.ok(count > 0)
        break
      }
      assert.ok(stream.closed.aborted)
    },
  },
  {
    name: 'ends by its signal, with the reason',
    async run({ source, trap }) {
      const stop = new AbortController()
      const stream = await source.subscribe({ trap }, { signal: stop.signal })
      const loop = (async () => {
        for await (const _ of stream);
      })()
      stop.abort()
      await assert.rejects(loop, isError('ERR_CLOUDAPP_ABORTED'))
      await assert.rejects(source.subscribe({ trap }, { signal: stop.signal }), isError('ERR_CLOUDAPP_ABORTED'))
    },
  },
  {
    name: 'gives a number that was freed to another without mixing their events',
    exact: true,
    async run({ source, trap, fire }) {
      for (let i = 0; i < 20; i++) {
        await using stream = await source.subscribe({ trap, captures: { rax: { register: 'rax' } } })
        await fire(any(stream), 300)
        const [batch] = await take(stream, 1)
        assert.equal(batch?.columns.serial[0], 0n)
        assert.equal(batch?.columns.rax[0], 0n)
      }
    },
  },
  {
    name: 'refuses what is no program, naming the place',
    async run({ source, trap }) {
      const wrong = (program: unknown) => source.subscribe(program as EventProgram)
      const refusals: [unknown, string, RegExp][] = [
        [{}, 'ERR_CLOUDAPP_INVALID_ARGUMENT', /program\.trap\.kind/],
        [
          { trap, captures: { a: { register: 'eax' } } },
          'ERR_CLOUDAPP_INVALID_ARGUMENT',
          /captures\.a\.register.*'rax'/,
        ],
        [{ trap, predikate: 1n }, 'ERR_CLOUDAPP_UNKNOWN_OPTION', /'predicate'/],
        [{ trap: { kind: 'memory-access' } }, 'ERR_CLOUDAPP_UNSUPPORTED', /Intel/],
      ]
      for (const [program, code, text] of refusals) {
        await assert.rejects(wrong(program), (error) => isError(code)(error) && text.test((error as Error).message))
      }
      await assert.rejects(source.subscribe({ trap }, { buffer: 1 }), isError('ERR_CLOUDAPP_INVALID_ARGUMENT'))
    },
  },
  {
    name: 'says what it traps',
    async run({ source, trap }) {
      const { traps } = await source.support()
      assert.ok(traps.includes(trap.kind))
    },
  },
]

const PATIENCE = 120_000

async function until(holds: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + PATIENCE
  while (!(await holds())) {
    if (performance.now() > end) throw new Error('waited in vain')
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}
