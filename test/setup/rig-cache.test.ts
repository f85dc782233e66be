import { existsSync, mkdirSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { afterEach, expect, it } from 'vitest'
import { cached, cacheRoot, keyOf } from '../rig/lib/cache.js'

const name = `test-${process.pid}`
const at = (key: string, of = name) => path.join(cacheRoot, `${of}-${key}`)
const build = async (folder: string) => writeFileSync(path.join(folder, 'built'), '')
const days = (folder: string, ago: number) => {
  const then = new Date(Date.now() - ago * 24 * 3_600_000)
  utimesSync(folder, then, then)
}

afterEach(() => {
  for (const key of ['old', 'recent', 'new', 'used'].map((what) => keyOf(what))) {
    for (const of of [name, `${name}-more`]) rmSync(at(key, of), { recursive: true, force: true })
  }
})

it('builds once, and forgets what nobody wanted for a month', async () => {
  const folders = [at(keyOf('old')), at(keyOf('recent')), at(keyOf('old'), `${name}-more`)]
  for (const folder of folders) mkdirSync(folder, { recursive: true })
  for (const [i, ago] of [31, 29, 31].entries()) days(folders[i] as string, ago)
  let built = 0
  const want = () =>
    cached(name, keyOf('new'), async (folder) => {
      built++
      await build(folder)
    })
  expect(await want()).toBe(at(keyOf('new')))
  expect(folders.map((folder) => existsSync(folder))).toEqual([false, true, true])
  expect(existsSync(path.join(await want(), 'built'))).toBe(true)
  expect(built).toBe(1)
})

it('counts from the last use', async () => {
  const used = await cached(name, keyOf('used'), build)
  days(used, 31)
  await cached(name, keyOf('used'), build)
  expect(Date.now() - statSync(used).mtimeMs).toBeLessThan(60_000)
  await cached(name, keyOf('new'), build)
  expect(existsSync(used)).toBe(true)
})
