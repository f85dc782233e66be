import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { encodeFrame } from '../../src/transport/frames.js'
import { Served } from './served.js'

const rejections: unknown[] = []
const onRejection = (reason: unknown) => rejections.push(reason)
beforeAll(() => void process.on('unhandledRejection', onRejection))
afterAll(() => void process.off('unhandledRejection', onRejection))

/** Messages near those of the interface: right ones, and right ones with something wrong in them. */
const names = fc.constantFrom('open', 'describe', 'health', 'run', 'findings', 'list', 'get', 'acknowledge', 'watch', 'next', 'close', 'artifacts', 'read', 'cancel', 'constructor', '__proto__', 'then', 'toString', 'scope') // biome-ignore format: one table
const id = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: -3, max: 6 }) },
  { weight: 1, arbitrary: fc.maxSafeInteger() },
)
const leaf = fc.oneof(
  fc.constant({ version: 1 }),
  fc.constant({}),
  fc.constantFrom('x', '', 'A'.repeat(22), `sha256:${'0'.repeat(64)}`, 'cloudapp-pass1.AAAA'),
  fc.string({ maxLength: 20 }),
  id,
  fc.boolean(),
  fc.constant(null),
  fc.uint8Array({ maxLength: 8 }),
  fc.record(
    { limit: id, since: fc.string({ maxLength: 24 }), waitMs: fc.constantFrom(0, 1, 30_001) },
    { requiredKeys: [] },
  ),
)
const expression = fc.oneof(
  leaf,
  fc.tuple(fc.constantFrom('pipeline', 'import', 'export', 'promise', 'error', 'bytes', 'bigint', 'date', 'undefined', 'remap', 'readable'), id, fc.array(names, { maxLength: 3 })), // biome-ignore format: one line
  fc.array(leaf, { maxLength: 3 }),
)
const call = fc
  .tuple(
    fc.constantFrom('push', 'push', 'push', 'stream'),
    id,
    fc.array(names, { maxLength: 3 }),
    fc.array(expression, { maxLength: 3 }),
  )
  .map(([kind, target, path, args]) => [kind, ['pipeline', target, path, args]])
const message = fc.oneof(
  { weight: 4, arbitrary: call },
  { weight: 3, arbitrary: id.map((n) => ['pull', n]) },
  { weight: 1, arbitrary: fc.tuple(fc.constantFrom('release', 'resolve', 'reject'), id, expression) },
  { weight: 1, arbitrary: fc.tuple(fc.constantFrom('abort', 'pipe', 'shout'), expression) },
)
const opening = [
  ['push', ['pipeline', 0, ['open'], [{ version: 1 }]]],
  ['pull', 1],
]
/** A stream of such frames; some cut, some with a byte changed, some followed by anything. */
const stream = fc
  .tuple(
    fc.array(message, { maxLength: 12 }),
    fc.option(fc.tuple(fc.nat(), fc.nat(255))),
    fc.option(fc.nat()),
    fc.option(fc.uint8Array({ maxLength: 40 })),
  )
  .map(([messages, change, cut, tail]) => {
    let bytes = Buffer.concat([...opening, ...messages].map((value) => encodeFrame(value)))
    if (change) bytes[change[0] % bytes.length] = change[1]
    if (cut !== null) bytes = bytes.subarray(0, cut % bytes.length)
    return Buffer.concat([bytes, tail ?? new Uint8Array()])
  })

describe('whatever a client sends', () => {
  it('is answered or ends its session, harms no other client, and leaves nothing behind', async () => {
    const sd = new Served()
    await sd.findings.raise({ key: 'a', about: (await import('./support.js')).WEB, title: 'a', severity: 'high' })
    const bystander = await sd.connect('web')
    await fc.assert(
      fc.asyncProperty(stream, fc.integer({ min: 1, max: 200 }), async (bytes, piece) => {
        const channel = sd.channel('nobody')
        const reading = (async () => {
          try {
            while ((await channel.read()) !== undefined);
          } catch {
            // Closed at this side, below.
          }
        })()
        for (let at = 0; at < bytes.length; at += piece) channel.write(new Uint8Array(bytes.subarray(at, at + piece)))
        await channel.drained()
        for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve))
        await channel.close()
        await reading
        expect((await bystander.describe()).service.name).toBe('ids')
      }),
      { numRuns: 400 },
    )
    // Every session but the bystander's has ended, with all it held; and nobody acknowledged what is not theirs.
    while (sd.server.sessions > 1) await new Promise((resolve) => setImmediate(resolve))
    expect(sd.store.sequence).toBe(1)
    expect(rejections).toEqual([])
  })
})
