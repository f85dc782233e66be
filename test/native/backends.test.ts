import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ABI_VERSION, CA_OPEN_WRITE, CURSOR_SIZE, STATUS_WORDS } from '../../src/native/abi.js'
import { checked, type FfiBackend, loadShim } from '../../src/native/shim.js'
import { LocalMemory } from '../../src/vmi/local.js'
import { buildImage, PA, VA } from '../conformance/image.js'
import { memoryConformance } from '../conformance/memory.js'

const image = buildImage()
const backends: readonly FfiBackend[] = ['koffi', 'ffi-napi']

describe.each(backends)('the native ABI through %s', (backend) => {
  const shim = loadShim(backend)
  const cursor = () => new Uint8Array(CURSOR_SIZE)
  const status = new BigUint64Array(STATUS_WORDS)
  let folder = ''
  let path = ''
  const text = (value: string) => Buffer.from(`${value}\0`)
  const open = (flags = 0, regions = new BigUint64Array(3), count = 0) =>
    checked(shim, shim.ca_mem_open_file(text(path), regions, count, flags))

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'cloudapp-native-'))
    path = join(folder, 'ram')
    await writeFile(path, image.ram)
  })
  afterAll(async () => {
    await rm(folder, { recursive: true })
  })

  it('takes and gives integers of every kind', () => {
    expect(shim.ca_abi_version()).toBe(ABI_VERSION)
    // A u64 that is no exact double when seen as a float's bits, and a u32 with its top bit set.
    const regions = BigUint64Array.of(0xf_ffff_ffff_0000n, 0x8000n, 0n)
    const memory = open(0, regions, 1)
    expect(shim.ca_mem_end(memory)).toBe(0xf_ffff_ffff_8000n)
    expect(shim.ca_mem_open_file(text(path), regions, 0xffff_ffff, 0)).toBe(-1)
    expect(shim.ca_mem_close(memory)).toBe(0)
    expect(shim.ca_mem_end(memory)).toBe(0n)
    expect(shim.ca_mem_close(memory)).toBe(-2)
  })

  it('gives error texts in the caller buffer and as CloudAppError', () => {
    const result = shim.ca_mem_open_file(text('/no/such/file'), new Uint8Array(8), 0, 0)
    expect(result).toBe(-3)
    expect(() => checked(shim, result)).toThrow(
      expect.objectContaining({ code: 'ERR_CLOUDAPP_SOURCE', message: expect.stringContaining('/no/such/file') }),
    )
  })

  it('passes addresses of the upper half, and views that begin inside their buffer', () => {
    const memory = open(CA_OPEN_WRITE)
    const at = VA.direct + PA.structures
    const backing = new Uint8Array(64).fill(0xee)
    const out = backing.subarray(8, 24)
    const faults = new Uint8Array(32)
    const table = BigUint64Array.of(9n, image.four, 0n, 1n, 16n, 0n).subarray(1)
    const addresses = BigUint64Array.of(7n, at).subarray(1)
    expect(shim.ca_read(memory, 0, 1000, table, 1, addresses, 1, out, 16, faults, 1, cursor(), status)).toBe(0)
    const expected = image.ram.slice(Number(PA.structures), Number(PA.structures) + 16)
    expect(out).toEqual(expected)
    expect([backing[7], backing[24]]).toEqual([0xee, 0xee])

    expect(shim.ca_write(memory, 0, 1000, image.five, at, out, 16, cursor(), status)).toBe(0)
    expect(status[0]).toBe(16n)
    const digest = new Uint8Array(32)
    const present = new Uint8Array(1)
    expect(shim.ca_digest(memory, 0, 1000, image.four, VA.noRoot, 1, digest, present, cursor(), status)).toBe(0)
    expect(present[0]).toBe(0)
    const runs = new BigUint64Array(32)
    const last = 0xffff_ffff_ffff_ffffn
    expect(shim.ca_pages(memory, 0, 1000, image.four, VA.scattered, last, 0, 1, runs, 4, cursor(), status)).toBe(0)
    expect(runs[0]).toBe(VA.scattered)
    expect(shim.ca_mem_revoke(memory)).toBe(0)
    expect(shim.ca_mem_invalidate(memory)).toBe(0)
    expect(shim.ca_mem_close(memory)).toBe(0)
  })
})

describe.each(backends)('GuestMemory through %s', (backend) => {
  memoryConformance(backend, async ({ ram }) => {
    const folder = await mkdtemp(join(tmpdir(), 'cloudapp-native-'))
    const path = join(folder, 'ram')
    await writeFile(path, ram)
    const before = process.env.CLOUDAPP_FFI
    process.env.CLOUDAPP_FFI = backend
    const memory = LocalMemory.open({ path, writable: true })
    if (before === undefined) delete process.env.CLOUDAPP_FFI
    else process.env.CLOUDAPP_FFI = before
    return {
      memory,
      close: async () => {
        memory.close()
        await rm(folder, { recursive: true })
      },
    }
  })
})
