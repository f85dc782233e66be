import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { findEventAgent, findNativeLibrary } from '../../src/native/find.js'
import { loadShim } from '../../src/native/shim.js'

const run = promisify(execFile)

describe('finding the native library', () => {
  let folder = ''
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'cloudapp-find-'))
  })
  afterAll(async () => {
    await rm(folder, { recursive: true })
  })
  afterEach(() => {
    vi.unstubAllEnvs()
  })

  it('takes what CLOUDAPP_NATIVE_LIB names, and nothing else', async () => {
    const path = join(folder, 'any')
    await writeFile(path, '')
    vi.stubEnv('CLOUDAPP_NATIVE_LIB', path)
    expect(findNativeLibrary()).toBe(path)
    vi.stubEnv('CLOUDAPP_NATIVE_LIB', join(folder, 'missing'))
    expect(() => findNativeLibrary()).toThrow(
      expect.objectContaining({
        code: 'ERR_CLOUDAPP_NATIVE',
        message: expect.stringContaining(join(folder, 'missing')),
        details: expect.objectContaining({ fix: expect.any(String) }),
      }),
    )
  })

  it('takes what make built in a checkout', () => {
    vi.stubEnv('CLOUDAPP_NATIVE_LIB', '')
    expect(findNativeLibrary()).toMatch(/native\/libvmi-shim\/build\/libcloudapp_shim\.so$/)
  })

  it('finds the event agent in the same places', () => {
    vi.stubEnv('CLOUDAPP_EVENT_AGENT', '')
    expect(findEventAgent()).toMatch(/native\/libvmi-shim\/build\/cloudapp-event-agent$/)
    vi.stubEnv('CLOUDAPP_EVENT_AGENT', join(folder, 'missing'))
    expect(() => findEventAgent()).toThrow(
      expect.objectContaining({
        code: 'ERR_CLOUDAPP_NATIVE',
        message: expect.stringContaining('CLOUDAPP_EVENT_AGENT'),
      }),
    )
  })

  it.each(['koffi', 'ffi-napi'] as const)(
    'says through %s what is wrong with a file that is no library',
    async (ffi) => {
      const path = join(folder, 'text.so')
      await writeFile(path, 'not a library')
      expect(() => loadShim(ffi, path)).toThrow(
        expect.objectContaining({ code: 'ERR_CLOUDAPP_NATIVE', message: expect.stringContaining(path) }),
      )
    },
  )

  it.each(['koffi', 'ffi-napi'] as const)('refuses another ABI version through %s', async (ffi) => {
    const source = join(folder, 'other.c')
    const path = join(folder, `other-${ffi}.so`)
    // It has no other function: the version must be looked at first.
    await writeFile(source, 'int ca_abi_version(void) { return 4711; }\n')
    await run('cc', ['-shared', '-fPIC', '-o', path, source])
    expect(() => loadShim(ffi, path)).toThrow(
      expect.objectContaining({ code: 'ERR_CLOUDAPP_NATIVE', message: expect.stringContaining('4711') }),
    )
  })

  it('refuses an FFI backend it does not know', () => {
    vi.stubEnv('CLOUDAPP_FFI', 'node-ffi')
    expect(() => loadShim()).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_NATIVE' }))
  })
})
