import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { syntheticGuest } from '../../../src/testing/index.js'
import { defaultCacheDirectory, ProfileCache, sha256 } from '../../../src/vmi/linux/cache.js'
import { Linux } from '../../../src/vmi/linux/linux.js'
import { makeKernelProfile } from '../../../src/vmi/linux/make-profile.js'
import { KernelProfile } from '../../../src/vmi/linux/profile.js'

// Each attach starts a process.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

let directory = ''
beforeEach(() => {
  directory = join(mkdtempSync(join(tmpdir(), 'profiles-')), 'cache')
})
afterEach(() => rmSync(join(directory, '..'), { recursive: true }))

/** A parser that fails at once: what works with it did not need one. */
const NO_PARSER = '/nonexistent/parser.mjs'

async function fill(seed = 1) {
  const guest = syntheticGuest({ functions: 50, seed })
  const { memory } = guest.vm()
  if (memory === undefined) throw new Error('a synthetic guest has memory')
  await makeKernelProfile(memory, { cache: directory })
  return { guest, memory }
}

const files = () => readdirSync(directory).sort()
const file = (part: string) => join(directory, files().find((name) => name.endsWith(`.${part}`)) as string)

describe('the profile cache', () => {
  it('serves a kernel it knows without a parser', async () => {
    const { guest, memory } = await fill()
    expect(files().map((name) => name.replace(/^.*\./, ''))).toEqual(['image', 'symbols', 'types'])
    for (const name of files()) expect(statSync(join(directory, name)).mode & 0o777).toBe(0o600)
    const parts = await makeKernelProfile(memory, { cache: directory, parser: NO_PARSER })
    const profile = KernelProfile.open(parts.header)
    expect(profile.symbol('init_task')).toBe(guest.symbol('init_task'))
    expect(profile.space).toBe(guest.space)
    const fresh = await makeKernelProfile(memory, { cache: false })
    for (const name of ['symbols', 'types']) {
      const { sha256: hash } = profile.image.sections.find((section) => section.name === name) ?? {}
      expect(sha256(await parts.section(name)).toString('hex')).toBe(hash)
      expect((await parts.section(name)).length).toBe((await fresh.section(name)).length)
    }
  })

  it('does not take one kernel for another', async () => {
    await fill(1)
    const { guest } = await fill(2)
    expect(files().filter((name) => name.endsWith('.image'))).toHaveLength(2)
    const linux = await Linux.attach(guest.vm({ cache: directory }))
    expect(await linux.symbol('init_task')).toBe(guest.symbol('init_task'))
  })

  it.each(['image', 'symbols', 'types'])('makes a damaged %s anew', async (part) => {
    const { guest } = await fill()
    const path = file(part)
    const bytes = readFileSync(path)
    bytes[bytes.length - 9] = (bytes[bytes.length - 9] as number) ^ 1
    writeFileSync(path, bytes)
    const linux = await Linux.attach(guest.vm({ cache: directory }))
    expect(await linux.symbol('init_task')).toBe(guest.symbol('init_task'))
    expect((await linux.types()).offset('task_struct.comm')).toBe(guest.offset('task_struct', 'comm'))
  })

  it('makes a missing section anew', async () => {
    const { guest } = await fill()
    rmSync(file('symbols'))
    rmSync(file('types'))
    const linux = await Linux.attach(guest.vm({ cache: directory }))
    expect(await linux.symbol('init_task')).toBe(guest.symbol('init_task'))
    expect((await linux.types()).offset('task_struct.comm')).toBe(guest.offset('task_struct', 'comm'))
  })

  it('uses no directory that others may write to', async () => {
    const { memory } = await fill()
    chmodSync(directory, 0o777)
    expect(await new ProfileCache(directory).list()).toEqual([])
    await expect(makeKernelProfile(memory, { cache: directory, parser: NO_PARSER })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_PROFILE',
    })
  })

  it('keeps a bounded number, the last used', async () => {
    await fill()
    const [image, symbols] = [readFileSync(file('image')), readFileSync(file('symbols'))]
    const name = files()[0]?.replace(/\.image$/, '') as string
    for (let i = 0; i < 40; i++) {
      const other = `${i.toString(16).padStart(2, '0')}${name.slice(2)}`
      for (const [part, bytes] of Object.entries({ image, symbols })) {
        const path = join(directory, `${other}.${part}`)
        writeFileSync(path, bytes, { mode: 0o600 })
        utimesSync(path, 1000 + i, 1000 + i)
      }
    }
    for (const [name, time] of [
      ['old.image.1.ab.tmp', 1000],
      ['new.image.1.ab.tmp', Date.now() / 1000],
    ] as const) {
      writeFileSync(join(directory, name), '')
      utimesSync(join(directory, name), time, time)
    }
    await fill(2)
    expect(files().filter((entry) => entry.endsWith('.tmp'))).toEqual(['new.image.1.ab.tmp'])
    const kept = files().filter((entry) => entry.endsWith('.image'))
    expect(kept).toHaveLength(32)
    expect(kept).toContain(`${name}.image`)
    expect(files().some((entry) => entry.startsWith('00'))).toBe(false)
  })

  it('attaches also where nothing can be cached', async () => {
    const guest = syntheticGuest({ functions: 50 })
    const blocker = join(directory, '..', 'file')
    writeFileSync(blocker, '')
    const linux = await Linux.attach(guest.vm({ cache: join(blocker, 'below') }))
    expect(await linux.symbol('init_task')).toBe(guest.symbol('init_task'))
  })

  it('lies where the environment says', () => {
    const { CLOUDAPP_CACHE, XDG_CACHE_HOME } = process.env
    try {
      process.env.CLOUDAPP_CACHE = '/somewhere'
      expect(defaultCacheDirectory()).toBe('/somewhere')
      delete process.env.CLOUDAPP_CACHE
      process.env.XDG_CACHE_HOME = '/x'
      expect(defaultCacheDirectory()).toBe('/x/cloudapp')
    } finally {
      for (const [name, value] of Object.entries({ CLOUDAPP_CACHE, XDG_CACHE_HOME }))
        if (value === undefined) delete process.env[name]
        else process.env[name] = value
    }
  })
})
