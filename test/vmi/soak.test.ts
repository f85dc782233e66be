import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { attachCycles } from '../../bench/soak/attach.js'
import { syntheticEvents } from '../../bench/soak/events.js'
import { usage } from '../../bench/soak/usage.js'
import { syntheticGuest } from '../../src/testing/index.js'
import { openVm } from '../../src/vmi/index.js'

let folder = ''
let uri = ''
beforeAll(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'soak-'))
  const file = path.join(folder, 'soaked.raw')
  writeFileSync(file, syntheticGuest({ seed: 5, functions: 200 }).ram)
  uri = `raw:${file}`
  process.env.CLOUDAPP_CACHE = path.join(folder, 'cache')
})
afterAll(() => {
  delete process.env.CLOUDAPP_CACHE
  rmSync(folder, { recursive: true, force: true })
})

// `npm run soak` does it 10,000 times, on a real guest, and on a domain of Xen.
it('attaches and detaches 100 times, and holds no more of the machine than before', { timeout: 60_000 }, async () => {
  const { grown, after } = await attachCycles('attach', uri, 100, /soaked\.raw$/)
  expect(grown).toEqual([])
  expect(after.mapped).toBe(0)
})

// `npm run soak` takes a million.
it('takes 50,000 events over 110 subscriptions, loses none, and holds no more than before', async () => {
  expect(await syntheticEvents(50_000)).toMatchObject({ count: 50_000, grown: [] })
})

it('sees what is held', async () => {
  const before = await usage(/soaked\.raw$/)
  const vm = await openVm(uri)
  await vm.memory.read([{ space: 0n, at: 0n, length: 8 }])
  const after = await usage(/soaked\.raw$/)
  expect(after.mapped).toBeGreaterThan(before.mapped)
  await vm.close()
})
