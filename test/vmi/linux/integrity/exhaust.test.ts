import { describe, expect, it } from 'vitest'
import { syntheticGuest } from '../../../../src/testing/index.js'
import { busy, inspect, put } from './hostile.js'

// A file of its own, beside hostile.test.ts: these are long, and run on another core.
describe('a guest can not exhaust who looks at it', { timeout: 120_000 }, () => {
  it('pointers to hidden code all over module memory', async () => {
    const guest = busy()
    const module = guest.addModule({ name: 'evil', symbols: ['evil_hook'] })
    const bait = guest.addModule({ name: 'bait', size: 1 << 16 })
    guest.hideModule('evil')
    const { hits } = await inspect(guest, () => {
      const base = module.symbols.get('evil_hook') as bigint
      const text = base & ~0xfffn
      for (let i = 0; i < 2000; i++) put(guest, bait.text.start + BigInt(8 * i), text)
    })
    expect(hits.map(({ kind }) => kind)).toEqual(expect.arrayContaining(['hidden-module']))
  })

  it('thousands of stray pages of code', async () => {
    const guest = syntheticGuest({ seed: 31, functions: 200, memory: 64 << 20 })
    for (let i = 0; i < 1100; i++) guest.injectCode(1)
    const { hits, checks, count } = await inspect(guest)
    expect(hits.length).toBeGreaterThan(100)
    expect(hits.length).toBeLessThan(2000)
    // 4 in each look.
    expect(count.searches).toBeLessThanOrEqual(16 * 4)
    expect(checks.find(({ name }) => name === 'modules')).toMatchObject({ done: false })
  })

  it('cgroups that all share one endless list of tasks', async () => {
    const guest = busy()
    const nodes = 20_000
    const first = guest.addModule({ name: 'chain', size: nodes * 16 }).text.start
    const sets = guest.addModule({ name: 'sets', size: 1 << 16 }).text.start
    const [hlist, tasks] = [BigInt(guest.offset('css_set', 'hlist')), BigInt(guest.offset('css_set', 'tasks'))]
    const { hits, count } = await inspect(guest, () => {
      for (let i = 0; i < nodes; i++) put(guest, first + BigInt(16 * i), first + BigInt(16 * ((i + 1) % nodes)))
      for (let i = 0; i < 120; i++) {
        const set = sets + BigInt(512 * i)
        put(guest, set + hlist, i === 119 ? 0n : set + 512n + hlist)
        put(guest, set + tasks, first)
      }
      put(guest, guest.symbol('css_set_table'), sets + hlist)
    })
    expect(hits.some(({ kind }) => kind === 'broken-list')).toBe(true)
    expect(count.rows).toBeLessThan(4 * 600_000)
  })
})
