import { mkdtemp, open, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { CloudAppError } from '../../src/errors.js'
import { LocalMemory, type LocalMemoryOptions } from '../../src/vmi/local.js'
import { LIMITS, PHYSICAL, virtualSpace, type WalkPlan } from '../../src/vmi/memory.js'
import { Bits, buildImage, ImageBuilder, PA, VA } from '../conformance/image.js'

const MiB = 1024n * 1024n
const image = buildImage()

describe('LocalMemory', () => {
  let folder = ''
  let path = ''
  const opened: LocalMemory[] = []
  const openMemory = (options: Partial<LocalMemoryOptions> = {}) => {
    const memory = LocalMemory.open({ path, ...options })
    opened.push(memory)
    return memory
  }

  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'cloudapp-local-'))
    path = join(folder, 'ram')
    await writeFile(path, image.ram)
  })
  afterEach(async () => {
    for (const memory of opened.splice(0)) memory.close()
    await rm(folder, { recursive: true })
  })

  describe('a file that is cut short while it is mapped', () => {
    it('faults behind its new end, to the byte', async () => {
      const memory = openMemory()
      await truncate(path, 0x2800)
      const [result] = await memory.read([{ space: PHYSICAL, at: 0x2000n, length: 4096 }])
      expect(result?.faults).toEqual([{ index: 0, reason: 'source', address: 0x2800n, level: 0, entry: 0n }])
      expect(result?.bytes.subarray(0, 0x800)).toEqual(image.ram.slice(0x2000, 0x2800))
      expect(result?.bytes.subarray(0x800)).toEqual(new Uint8Array(0x800))
    })

    it('ends walks and searches, and faults in page tables', async () => {
      const memory = openMemory()
      await truncate(path, 4096)
      const plan: WalkPlan = { kind: 'list', space: image.four, head: VA.direct, node: 0, columns: [], limit: 5 }
      expect(await memory.walk([plan])).toMatchObject([
        { rows: 0, end: 'fault', fault: { reason: 'source', level: 4 } },
      ])
      const search = { space: PHYSICAL, start: 0n, end: 4n * MiB, patterns: [Buffer.from('needle')], limit: 5 }
      expect(await memory.search(search)).toMatchObject({ matches: [], end: 'complete' })
      const digest = await memory.digest({ space: PHYSICAL, start: 0n, end: 0x3000n })
      expect([...digest.present]).toEqual([1, 0, 0])
    })

    it('survives a file that shrinks and grows all the while', async () => {
      const memory = openMemory()
      const file = await open(path, 'r+')
      let done = false
      const changes = (async () => {
        while (!done) {
          await file.truncate(0)
          await file.truncate(image.ram.length)
        }
      })()
      for (let i = 0; i < 50; i++) {
        const [result] = await memory.read([{ space: PHYSICAL, at: 0n, length: image.ram.length }])
        for (const fault of result?.faults ?? []) expect(fault.reason).toBe('source')
      }
      done = true
      await changes
      await file.close()
    })
  })

  it('reads into the buffer of the caller', async () => {
    const memory = openMemory()
    const into = new Uint8Array(20).fill(0xee)
    const requests = [
      { space: PHYSICAL, at: PA.patterns, length: 10 },
      { space: image.four, at: VA.noRoot, length: 4 },
    ]
    const results = await memory.readInto(into.subarray(1, 19), requests)
    expect(Buffer.from(into).toString('latin1')).toBe(`\xeeneedle-one\0\0\0\0\xee\xee\xee\xee\xee`)
    expect(results.map(({ bytes }) => [bytes.buffer === into.buffer, bytes.byteOffset, bytes.length])).toEqual([
      [true, 1, 10],
      [true, 11, 4],
    ])
    expect(results[1]?.faults).toHaveLength(1)
    await expect(memory.readInto(new Uint8Array(13), requests)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_INVALID_ARGUMENT',
    })
  })

  it('maps regions around a hole', async () => {
    const memory = openMemory({
      regions: [
        { address: 0x1_0000_0000n, size: 2n * MiB, offset: 2n * MiB },
        { address: 0n, size: 2n * MiB, offset: 0n },
      ],
    })
    expect(memory.end).toBe(0x1_0000_0000n + 2n * MiB)
    const [below, above, hole] = await memory.read([
      { space: PHYSICAL, at: PA.patterns, length: 10 },
      { space: PHYSICAL, at: memory.end - 8n, length: 8 },
      { space: PHYSICAL, at: 2n * MiB, length: 8 },
    ])
    expect(Buffer.from(below?.bytes ?? []).toString()).toBe('needle-one')
    expect(Buffer.from(above?.bytes ?? []).readBigUInt64LE()).toBe(0xfeed_face_cafe_beefn)
    expect(hole?.faults).toMatchObject([{ reason: 'outside-ram' }])
    const pattern = Uint8Array.from([0xef, 0xbe, 0xfe, 0xca])
    const found = await memory.search({ space: PHYSICAL, start: 0n, end: memory.end, patterns: [pattern], limit: 5 })
    expect(found.matches).toEqual([{ pattern: 0, at: memory.end - 8n }])
  })

  it('lets the event loop turn during a long call, and stops for its signal', async () => {
    // A table whose entries all lead to itself: 2^36 pages, every one of them mapped.
    const maze = new ImageBuilder(8192n, 0n)
    for (let i = 0n; i < 512n; i++) maze.u64(4096n + i * 8n, 4096n | Bits.Present)
    await writeFile(path, maze.ram)
    const memory = openMemory()
    const controller = new AbortController()
    let turns = 0
    const count = () => {
      if (++turns === 5) controller.abort(new Error('enough'))
      else setImmediate(count)
    }
    setImmediate(count)
    const space = virtualSpace(4096n, 4)
    const range = { space, start: 0n, end: 1n << 64n, limit: 10 }
    const call = { signal: controller.signal }
    await expect(memory.search({ ...range, patterns: [Buffer.from('absent')] }, call)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_ABORTED',
      cause: expect.objectContaining({ message: 'enough' }),
    })
    expect(turns).toBe(5)
  })

  it('cuts walks at the bytes all results may hold', async () => {
    const memory = openMemory()
    const columns = Array.from({ length: 32 }, () => ({ path: [0], size: 4096 }))
    const count = 400
    const plan: WalkPlan = { kind: 'array', space: PHYSICAL, head: 0n, count, stride: 1, columns, limit: count }
    const results = await memory.walk([plan, plan])
    const rows = results.map((result) => result.rows)
    expect(rows[0]).toBe(count)
    expect(rows[1]).toBe(Math.floor(LIMITS.resultBytes / (32 * 4097 + 8)) - count)
    expect(results.map(({ end }) => end)).toEqual(['complete', 'limit'])
  })

  it('keeps upper levels only while the VM stands still, and drops them when told', async () => {
    const state = { paused: false, generation: 0 }
    const pause = { paused: () => state.paused, generation: () => state.generation }
    const memory = openMemory({ pause })
    const level2 = (image.four & ~0xfffn) + ((VA.large >> 39n) & 511n) * 8n
    const file = await open(path, 'r+')
    const set = (entry: bigint) => file.write(Buffer.from(BigUint64Array.of(entry).buffer), 0, 8, Number(level2))
    const good = Buffer.from(image.ram).readBigUInt64LE(Number(level2))
    const faults = async () =>
      (await memory.read([{ space: image.four, at: VA.large, length: 8 }]))[0]?.faults.map(({ level }) => level)

    expect(await faults()).toEqual([])
    await set(0n)
    expect(await faults()).toEqual([4])
    await set(good)
    state.paused = true
    expect(await faults()).toEqual([])
    // Nobody but us can change a paused guest: the level read before serves.
    await set(0n)
    expect(await faults()).toEqual([])
    memory.invalidate()
    expect(await faults()).toEqual([4])
    await set(good)
    expect(await faults()).toEqual([])
    await set(0n)
    state.generation++
    expect(await faults()).toEqual([4])
    await file.close()
  })

  it('throws ERR_CLOUDAPP_REVOKED once it is revoked, also in a call under way', async () => {
    const memory = openMemory({ writable: true })
    const call = memory.digest({ space: PHYSICAL, start: 0n, end: 1024n * MiB })
    memory.revoke()
    memory.revoke()
    const revoked = expect.objectContaining({ code: 'ERR_CLOUDAPP_REVOKED' })
    await expect(call).rejects.toEqual(revoked)
    await expect(memory.read([{ space: PHYSICAL, at: 0n, length: 8 }])).rejects.toEqual(revoked)
    const bytes = new Uint8Array(1)
    await expect(memory.write?.([{ space: PHYSICAL, at: 0n, bytes }])).rejects.toEqual(revoked)
    expect(() => memory.sync.read([{ space: PHYSICAL, at: 0n, length: 8 }])).toThrow(revoked)
  })

  it('throws the reason of whoever revoked it first, also once it is closed', async () => {
    const memory = openMemory()
    const call = memory.digest({ space: PHYSICAL, start: 0n, end: 1024n * MiB })
    const reason = new CloudAppError('ERR_CLOUDAPP_EXPIRED', 'its time is over')
    memory.revoke(reason)
    memory.revoke()
    await expect(call).rejects.toBe(reason)
    memory.close()
    memory.revoke()
    await expect(memory.read([{ space: PHYSICAL, at: 0n, length: 8 }])).rejects.toBe(reason)
    expect(() => memory.sync.read([{ space: PHYSICAL, at: 0n, length: 8 }])).toThrow(reason)
  })

  it('ends calls under way with ERR_CLOUDAPP_CLOSED when it is closed', async () => {
    const memory = openMemory()
    const call = memory.digest({ space: PHYSICAL, start: 0n, end: 1024n * MiB })
    memory.close()
    memory.close()
    await expect(call).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
    expect(() => memory.sync.walk([])).not.toThrow()
    expect(() => memory.invalidate()).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_CLOSED' }))
  })

  it('has no write unless it was opened for writing', () => {
    expect(openMemory()).not.toHaveProperty('write')
    expect(openMemory({ writable: true }).write).toBeTypeOf('function')
  })

  it('changes nothing in the file it reads, and what it writes is there', async () => {
    const memory = openMemory({ writable: true })
    await memory.write?.([{ space: PHYSICAL, at: 100n, bytes: Buffer.from('written') }])
    const file = await open(path)
    const { buffer } = await file.read(Buffer.alloc(7), 0, 7, 100)
    await file.close()
    expect(buffer.toString()).toBe('written')
  })

  it.each([
    ['a file that is missing', { path: '/no/such/file' }, 'ERR_CLOUDAPP_SOURCE'],
    ['a folder', { path: '/' }, 'ERR_CLOUDAPP_SOURCE'],
    ['a device', { path: '/dev/null' }, 'ERR_CLOUDAPP_SOURCE'],
    ['an empty path', { path: '' }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    ['a path with a null byte', { path: '/tmp/a\0b' }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    ['an empty region', { regions: [{ address: 0n, size: 0n, offset: 0n }] }, 'ERR_CLOUDAPP_INVALID_ARGUMENT'],
    [
      'regions that overlap',
      { regions: [0n, 0xfffn].map((address) => ({ address, size: 0x1000n, offset: 0n })) },
      'ERR_CLOUDAPP_INVALID_ARGUMENT',
    ],
    ['an option it does not know', { writeable: true }, 'ERR_CLOUDAPP_UNKNOWN_OPTION'],
  ])('refuses %s', (_, options, code) => {
    expect(() => openMemory(options as Partial<LocalMemoryOptions>)).toThrow(expect.objectContaining({ code }))
  })
})
