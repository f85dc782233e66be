import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { PHYSICAL } from '../../../src/vmi/memory.js'
import { openLibvmi } from '../../../src/vmi/sources/libvmi.js'
import { buildImage, PA } from '../../conformance/image.js'
import { libvmiSuite } from './libvmi-suite.js'

// A library of ours with LibVMI's ABI.
const native = fileURLToPath(new URL('../../../native/libvmi-shim', import.meta.url))
const library = join(native, 'build/stub-libvmi/libvmi.so.0')

beforeAll(() => {
  execFileSync('make', ['-s', '-C', native, 'build/stub-libvmi/libvmi.so.0'], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
})

libvmiSuite(library)

describe('libvmi: of Xen', () => {
  let path = ''
  beforeAll(() => {
    path = join(mkdtempSync(join(tmpdir(), 'cloudapp-libvmi-')), 'ram.raw')
    writeFileSync(path, buildImage().ram)
    process.env.STUB_LIBVMI_RAM = path
  })
  afterAll(() => {
    delete process.env.STUB_LIBVMI_RAM
    rmSync(join(path, '..'), { recursive: true, force: true })
  })

  it.each(['stub', '7'])('opens a domain by name and number (%s), with registers', async (domain) => {
    await using vm = await openVmBy(domain)
    expect(vm.identity.name).toBe(domain)
    const vcpus = (await vm.vcpus?.registers()) ?? []
    expect(vcpus).toHaveLength(2)
    expect(vcpus[1]).toMatchObject({ index: 1, rip: 0xffffffff00010008n, cr3: 0xffffffff00010014n })
    expect(vcpus[0]?.missing).toEqual({ lstar: 'LibVMI does not give it' })
    const [result] = await vm.memory.read([{ space: PHYSICAL, at: PA.patterns, length: 10 }])
    expect(Buffer.from(result?.bytes ?? []).toString()).toBe('needle-one')
  })

  it('says what LibVMI says of a domain that is not there', async () => {
    await expect(openVmBy('other')).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_SOURCE',
      message: expect.stringContaining('no such domain'),
    })
  })

  const openVmBy = (domain: string) => openLibvmi(`xen:${domain}`, { library })
})
