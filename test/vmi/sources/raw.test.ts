import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { PHYSICAL } from '../../../src/vmi/memory.js'
import { openVm } from '../../../src/vmi/sources/open.js'
import { openRaw } from '../../../src/vmi/sources/raw.js'
import { buildImage, PA } from '../../conformance/image.js'

const image = buildImage()
const request = { space: PHYSICAL, at: PA.patterns, length: 10 }

describe('the raw source', () => {
  let folder = ''
  let path = ''
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'cloudapp-raw-'))
    path = join(folder, 'ram.raw')
    await writeFile(path, image.ram)
  })
  afterAll(async () => {
    await rm(folder, { recursive: true })
  })

  it('gives memory, and an identity that names no VM', async () => {
    await using vm = await openRaw(path)
    expect(vm.identity).toEqual({
      name: 'ram.raw',
      uuid: '00000000-0000-0000-0000-000000000000',
      bootNonce: '00000000000000000000000000000000',
    })
    expect(vm).not.toHaveProperty('vcpus')
    expect(vm).not.toHaveProperty('pause')
    const [result] = await vm.memory.read([request])
    expect(Buffer.from(result?.bytes ?? []).toString()).toBe('needle-one')
    expect(result?.consistent).toBe(false)
    expect(vm.memory.write).toBeUndefined()
  })

  it('takes a name, regions, and a file that does not change', async () => {
    const regions = [{ address: 0x10_0000n, size: 0x1000n, offset: PA.patterns }]
    await using vm = await openRaw(path, { name: 'dump', frozen: true, writable: true, regions })
    expect(vm.identity.name).toBe('dump')
    expect(vm.memory.end).toBe(0x10_1000n)
    const [result] = await vm.memory.read([{ ...request, at: 0x10_0000n }])
    expect(Buffer.from(result?.bytes ?? []).toString()).toBe('needle-one')
    expect(result?.consistent).toBe(true)
    expect(vm.memory.write).toBeTypeOf('function')
  })

  it('closes once, its memory with it, and says so by its signal', async () => {
    const vm = await openRaw(path)
    expect(vm.closed.aborted).toBe(false)
    await Promise.all([vm.close(), vm.close()])
    await vm.close()
    expect(vm.closed.reason).toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED', vm: 'ram.raw' })
    await expect(vm.memory.read([request])).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
    await expect(vm.kernel()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  it('says of memory without a kernel which part of the profile is missing', async () => {
    await using vm = await openRaw(path)
    await expect(vm.kernel()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROFILE' })
    // A failure is not kept.
    await expect(vm.kernel({ signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_ABORTED' })
  })

  it('refuses what it does not know or can not open', async () => {
    await expect(openRaw(path, { readOnly: true } as never)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_UNKNOWN_OPTION',
    })
    await expect(openRaw(join(folder, 'absent'))).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_SOURCE' })
  })

  it('is opened by its URI', async () => {
    await using vm = await openVm(`raw:${path}`)
    expect(vm.identity.name).toBe('ram.raw')
    for (const uri of ['', path, 'raw:', ':x', 'vmware:esx']) {
      await expect(openVm(uri)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    }
    await expect(openVm(`raw:${path}`, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_ABORTED',
    })
    await expect(openVm('qemu:/no/such/socket')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_SOURCE' })
  })
})
