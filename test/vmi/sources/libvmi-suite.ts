import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { SyntheticGuest } from '../../../src/testing/index.js'
import { Linux } from '../../../src/vmi/linux/linux.js'
import { PHYSICAL } from '../../../src/vmi/memory.js'
import { openLibvmi } from '../../../src/vmi/sources/libvmi.js'
import { openVm } from '../../../src/vmi/sources/open.js'
import { openRaw } from '../../../src/vmi/sources/raw.js'
import { buildImage, PA } from '../../conformance/image.js'
import { memoryConformance } from '../../conformance/memory.js'

const root = fileURLToPath(new URL('../../../', import.meta.url))

/** What openLibvmi must do with a LibVMI, ours or a real one; a process can have only one. */
export function libvmiSuite(library: string): void {
  const image = buildImage()
  let folder = ''
  let path = ''

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'cloudapp-libvmi-'))
    path = join(folder, 'ram.raw')
    writeFileSync(path, image.ram)
  })
  afterAll(() => rmSync(folder, { recursive: true, force: true }))

  memoryConformance('LibVMI over a file', async ({ ram }) => {
    const file = join(mkdtempSync(join(tmpdir(), 'cloudapp-libvmi-')), 'ram')
    writeFileSync(file, ram)
    const vm = await openLibvmi(`file:${file}`, { library })
    return {
      memory: vm.memory,
      close: async () => {
        await vm.close()
        rmSync(join(file, '..'), { recursive: true, force: true })
      },
    }
  })

  describe('libvmi: of a file', () => {
    it('reads what is there, and what has changed', async () => {
      await using vm = await openLibvmi(`file:${path}`, { library })
      expect(vm.identity).toEqual({
        name: 'ram.raw',
        uuid: '00000000-0000-0000-0000-000000000000',
        bootNonce: '0'.repeat(32),
      })
      expect(vm).not.toHaveProperty('vcpus')
      expect(vm).not.toHaveProperty('pause')
      expect(vm.memory).not.toHaveProperty('write')
      const read = async () => (await vm.memory.read([{ space: PHYSICAL, at: PA.patterns, length: 10 }]))[0]
      const first = await read()
      expect(Buffer.from(first?.bytes ?? []).toString()).toBe('needle-one')
      expect(first?.consistent).toBe(false)
      const changed = Buffer.from(image.ram)
      changed.write('NEEDLE', Number(PA.patterns))
      writeFileSync(path, changed)
      vm.memory.invalidate()
      expect(Buffer.from((await read())?.bytes ?? []).toString()).toBe('NEEDLE-one')
      writeFileSync(path, image.ram)
    })

    it('shows a kernel as raw: does', async () => {
      const guest = await SyntheticGuest.create()
      const file = join(folder, 'guest.raw')
      await guest.write(file)
      await using raw = await openRaw(file)
      const expected = await Linux.attach(raw)
      await using vm = await openLibvmi(`file:${file}`, { library })
      const linux = await Linux.attach(vm)
      expect(linux.profile.boot).toEqual(expected.profile.boot)
      expect(await linux.tasks()).toEqual(await expected.tasks())
      expect(await linux.modules()).toEqual(await expected.modules())
    })

    it('says nothing on standard output', () => {
      const program = `
      const { openLibvmi } = await import('./src/vmi/sources/libvmi.ts')
      process.stdout.write('a')
      const vm = await openLibvmi(process.argv[1], { library: process.argv[2] })
      process.stdout.write('b')
      await vm.memory.read([{ space: 0n, at: 0n, length: 8 }])
      await vm.close()
      const error = await openLibvmi('file:/no/such/file', { library: process.argv[2] }).catch((error) => error)
      process.stdout.write(error.code)`
      const args = ['--import', './scripts/ts.mjs', '--input-type=module', '-e', program, `file:${path}`, library]
      const { stdout, stderr, status } = spawnSync(process.execPath, args, { cwd: root, encoding: 'utf8' })
      expect({ stdout, status }).toEqual({ stdout: 'abERR_CLOUDAPP_SOURCE', status: 0 })
      expect(stderr).not.toContain('VMI_')
    })

    it('refuses what it does not know or can not open', async () => {
      const refused = { code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' }
      for (const target of ['', 'xen', 'xen:', 'file:', 'kvm:vm', path]) {
        await expect(openLibvmi(target, { library })).rejects.toMatchObject(refused)
      }
      await expect(openLibvmi(`file:${path}`, { library: '' })).rejects.toMatchObject(refused)
      await expect(openLibvmi(`file:${path}`, { writable: true } as never)).rejects.toMatchObject({
        code: 'ERR_CLOUDAPP_UNKNOWN_OPTION',
      })
      await expect(openLibvmi(`file:${path}`, { library, signal: AbortSignal.abort() })).rejects.toMatchObject({
        code: 'ERR_CLOUDAPP_ABORTED',
      })
      await expect(openLibvmi('file:/no/such/file', { library })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_SOURCE' })
      // One LibVMI for a process; which one is decided by the first.
      await expect(openLibvmi(`file:${path}`, { library: '/no/libvmi.so' })).rejects.toMatchObject({
        code: 'ERR_CLOUDAPP_UNSUPPORTED',
      })
    })

    it('is opened by its URI, from the library the environment names', async () => {
      const before = process.env.CLOUDAPP_LIBVMI
      process.env.CLOUDAPP_LIBVMI = library
      try {
        await using vm = await openVm(`libvmi:file:${path}`)
        expect(vm.memory.end).toBe(BigInt(image.ram.length))
      } finally {
        if (before === undefined) delete process.env.CLOUDAPP_LIBVMI
        else process.env.CLOUDAPP_LIBVMI = before
      }
    })
  })
}
