import { execFileSync } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { PHYSICAL } from '../../../src/vmi/memory.js'
import { openLime } from '../../../src/vmi/sources/lime.js'
import { openVm } from '../../../src/vmi/sources/open.js'
import { filled, limeRange } from './snapshot-files.js'

describe('lime:', () => {
  let folder = ''
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'cloudapp-lime-'))
  })
  afterAll(async () => {
    await rm(folder, { recursive: true })
  })
  let files = 0
  const save = async (...parts: Buffer[]): Promise<string> => {
    const path = join(folder, `${files++}.lime`)
    await writeFile(path, Buffer.concat(parts))
    return path
  }

  it('has memory where the ranges say, and holes elsewhere', async () => {
    // The first range ends in the middle of a page, as the one below the BIOS does.
    const path = await save(
      limeRange(0x1000n, 0x9fbffn, filled(0x9ec00, 1)),
      limeRange(0x10_0000n, 0x10_1fffn, filled(0x2000, 2)),
    )
    await using vm = await openVm(`lime:${path}`)
    expect(vm.memory.end).toBe(0x10_2000n)
    expect(vm).not.toHaveProperty('vcpus')
    const addresses = [0x1000n, 0x9fbf8n, 0x9fc00n, 0x10_1ff8n, 0n]
    const results = await vm.memory.read(addresses.map((at) => ({ space: PHYSICAL, at, length: 8 })))
    const found = results.map(({ bytes, faults, consistent }) => {
      expect(consistent).toBe(true)
      return faults[0]?.reason ?? Buffer.from(bytes).readBigUInt64LE()
    })
    expect(found).toEqual([1n << 32n, (1n << 32n) + 0x9ebf8n, 'outside-ram', (2n << 32n) + 0x1ff8n, 'outside-ram'])
  })

  const page = filled(0x1000, 1)
  const range = limeRange(0n, 0xfffn, page)
  it.each([
    ['an empty file', [], 'ERR_CLOUDAPP_SOURCE', /no memory/],
    ['another file', [page], 'ERR_CLOUDAPP_SOURCE', /raw:/],
    ['a header cut short', [range.subarray(0, 31)], 'ERR_CLOUDAPP_SOURCE', /cut short/],
    ['a range cut short', [range.subarray(0, 4000)], 'ERR_CLOUDAPP_SOURCE', /cut short/],
    ['rest behind the last range', [range, Buffer.alloc(5)], 'ERR_CLOUDAPP_SOURCE', /cut short/],
    ['no header behind a range', [range, page], 'ERR_CLOUDAPP_SOURCE', /range 1 .* magic/],
    [
      'a range that ends before it begins',
      [limeRange(0x1000n, 0xffen, page)],
      'ERR_CLOUDAPP_SOURCE',
      /before it begins/,
    ],
    ['all of 64 bits', [limeRange(0n, (1n << 64n) - 1n, page)], 'ERR_CLOUDAPP_SOURCE', /52 bits/],
    ['a wild address', [limeRange((1n << 64n) - 0x1000n, (1n << 64n) - 1n, page)], 'ERR_CLOUDAPP_SOURCE', /52 bits/],
    ['overlaps', [range, limeRange(0x800n, 0x17ffn, page)], 'ERR_CLOUDAPP_SOURCE', /0x800 twice/],
    ['version 2', [limeRange(0n, 0xfffn, page, 2)], 'ERR_CLOUDAPP_UNSUPPORTED', /version 2/],
    ['version 3', [limeRange(0n, 0xfffn, page, 3)], 'ERR_CLOUDAPP_SOURCE', /version 3/],
    ['AVML', [limeRange(0n, 0xfffn, page, 2, 'AVML')], 'ERR_CLOUDAPP_UNSUPPORTED', /AVML/],
  ])('refuses %s', async (_, parts, code, message) => {
    const path = await save(...parts)
    await expect(openLime(path)).rejects.toMatchObject({ code, message: expect.stringMatching(message) })
  })

  it('does not wait for a FIFO', async () => {
    const path = join(folder, 'fifo')
    execFileSync('mkfifo', [path])
    await expect(openLime(path)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_SOURCE' })
  })
})
