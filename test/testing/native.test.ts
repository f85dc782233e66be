import { createHash } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { BufferMemory, syntheticGuest } from '../../src/testing/index.js'
import { Linux } from '../../src/vmi/linux/index.js'
import { LocalMemory } from '../../src/vmi/local.js'
import type { GuestMemory, WalkPlan } from '../../src/vmi/memory.js'
import { openRaw } from '../../src/vmi/sources/raw.js'

describe('a synthetic guest in a file', { timeout: 30_000 }, () => {
  let folder = ''
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'cloudapp-testing-'))
  })
  afterAll(() => rm(folder, { recursive: true }))

  it('is attached to through raw:', async () => {
    const guest = syntheticGuest({ seed: 31, release: '6.12.0' })
    const path = join(folder, 'raw')
    await guest.write(path)
    await using vm = await openRaw(path, { frozen: true })
    const linux = await Linux.attach(vm)
    expect((await linux.tasks({ threads: true })).map(({ task }) => task)).toEqual(guest.tasks().map((t) => t.address))
  })

  it('reads the same through the native library as from the buffer, however it is damaged', async () => {
    const guest = syntheticGuest({ seed: 32, memory: 16 << 20, functions: 0 })
    const sound = guest.ram.slice()
    const path = join(folder, 'damaged')
    const init = guest.symbol('init_task') + BigInt(guest.offset('task_struct', 'tasks'))
    const node = guest.offset('task_struct', 'tasks')
    const columns = [
      { path: [guest.offset('task_struct', 'comm')], size: 16 },
      { path: [guest.offset('task_struct', 'mm'), guest.offset('mm_struct', 'pgd')], size: 8 },
    ]
    const base = { space: guest.space, columns, limit: 500 }
    const pids = guest.symbol('init_pid_ns') + BigInt(guest.offset('pid_namespace', 'idr.idr_rt.xa_head'))
    const plans: WalkPlan[] = [
      { ...base, kind: 'list', head: init, node },
      {
        ...base,
        kind: 'hash',
        head: guest.symbol('css_set_table'),
        count: 128,
        node: guest.offset('css_set', 'hlist'),
      },
      { ...base, kind: 'rbtree', head: guest.symbol('vmap_area_root'), node: guest.offset('vmap_area', 'rb_node') },
      {
        ...base,
        kind: 'xarray',
        head: pids,
        shiftOffset: guest.offset('xa_node', 'shift'),
        slotsOffset: guest.offset('xa_node', 'slots'),
        slots: 64,
      },
      { ...base, kind: 'array', head: init, count: 40, stride: 8, pointers: true },
    ]
    const look = async (memory: GuestMemory) => ({
      walks: await memory.walk(plans),
      reads: await memory.read(guest.tasks().map(({ address }) => ({ space: guest.space, at: address, length: 9000 }))),
      pages: await memory.pages({ space: guest.space, start: 0n, end: 1n << 64n, limit: 2000 }),
      found: await memory.search({
        space: guest.space,
        start: guest.symbol('_text'),
        end: guest.symbol('_end'),
        patterns: [Buffer.from('Linux'), Buffer.from('swapper'), new Uint8Array([0x0f, 0x1f, 0x44])],
        limit: 200,
      }),
      digests: await memory.digest({
        space: guest.space,
        start: guest.symbol('init_task') & ~0xfffn,
        end: (init & ~0xfffn) + 8192n,
      }),
    })
    const tables = [0, 1, 2, 3].map((level) => tablesAt(guest.ram, Number(guest.space & ~0xfffn), 5, level))
    const places = [...tables.flat().flatMap(filled(guest.ram)), ...pointersIn(guest.ram)]
    const damage = fc.array(
      fc.record({
        place: fc.integer({ min: 0, max: 1 << 20 }),
        offset: fc.integer({ min: 0, max: 511 }),
        value: fc.oneof(
          fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
          fc.integer({ min: 0, max: 1 << 24 }).map(BigInt),
        ),
      }),
      { maxLength: 12 },
    )
    await fc.assert(
      fc.asyncProperty(damage, async (changes) => {
        guest.ram.set(sound)
        const view = new DataView(guest.ram.buffer)
        for (const { place, value } of changes) view.setBigUint64(places[place] as number, value, true)
        await guest.write(path)
        const native = LocalMemory.open({ path })
        try {
          expect(plain(await look(native))).toEqual(plain(await look(new BufferMemory(guest.ram))))
        } finally {
          await native.close()
        }
      }),
      { numRuns: 40, seed: 3, interruptAfterTimeLimit: 20_000, markInterruptAsFailure: false },
    )
  })
})

/** Long arrays by their hash: comparing them element by element takes minutes. */
function plain(value: unknown): unknown {
  if (ArrayBuffer.isView(value)) {
    const bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
    return `${bytes.byteLength} ${createHash('sha1').update(bytes).digest('hex')}`
  }
  if (Array.isArray(value)) return value.map(plain)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, plain(part)]))
}

/** Places of the words of a page that are not zero. */
function filled(ram: Uint8Array): (page: number) => number[] {
  const view = new DataView(ram.buffer)
  const words = Array.from({ length: 512 }, (_, i) => i * 8)
  return (page) => words.map((offset) => page + offset).filter((at) => view.getBigUint64(at, true) !== 0n)
}

/** Places of the words of RAM that look like kernel addresses in the direct map. */
function pointersIn(ram: Uint8Array): number[] {
  const view = new DataView(ram.buffer)
  const places: number[] = []
  for (let at = 0; at < ram.byteLength; at += 8) {
    if (view.getUint32(at + 4, true) >>> 16 === 0xff11) places.push(at)
  }
  return places
}

/** Physical addresses of the tables `depth` levels below a root. */
function tablesAt(ram: Uint8Array, root: number, levels: number, depth: number): number[] {
  const view = new DataView(ram.buffer)
  let tables = [root]
  for (let i = 0; i < depth && levels - i > 1; i++) {
    tables = tables.flatMap((table) =>
      Array.from({ length: 512 }, (_, slot) => view.getBigUint64(table + slot * 8, true))
        .filter((entry) => (entry & 0x81n) === 1n)
        .map((entry) => Number(entry & 0x000f_ffff_ffff_f000n)),
    )
  }
  return tables
}
