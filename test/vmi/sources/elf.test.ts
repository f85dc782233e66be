import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { PHYSICAL } from '../../../src/vmi/memory.js'
import { openElf } from '../../../src/vmi/sources/elf.js'
import { openVm } from '../../../src/vmi/sources/open.js'
import { elfFile, filled, note, qemuState, xenFile } from './snapshot-files.js'

const LOW = filled(0x3000, 1)
const HIGH = filled(0x2000, 2)
const at = (tag: number, offset: number): bigint => (BigInt(tag) << 32n) | BigInt(offset)

let folder = ''
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'cloudapp-elf-'))
})
afterAll(async () => {
  await rm(folder, { recursive: true })
})

let files = 0
const save = async (bytes: Buffer): Promise<string> => {
  const path = join(folder, `${files++}.elf`)
  await writeFile(path, bytes)
  return path
}

/** The 64-bit words at these addresses, or why there is none. */
async function words(path: string, addresses: readonly bigint[]): Promise<(bigint | string)[]> {
  await using vm = await openVm(`elf:${path}`)
  const results = await vm.memory.read(addresses.map((address) => ({ space: PHYSICAL, at: address, length: 8 })))
  return results.map(({ bytes, faults, consistent }) => {
    expect(consistent).toBe(true)
    return faults[0]?.reason ?? Buffer.from(bytes).readBigUInt64LE()
  })
}

const refusal = async (bytes: Buffer): Promise<{ code?: string; message?: string }> =>
  openElf(await save(bytes)).then(
    async (vm) => {
      await vm.close()
      return {}
    },
    (error) => error,
  )

describe('elf: of QEMU', () => {
  const segments = [
    { type: 4, bytes: Buffer.alloc(0) },
    { physical: 0n, bytes: LOW },
    { physical: 0x1_0000_0000n, bytes: HIGH },
  ]

  it('has memory where the program headers say, and holes elsewhere', async () => {
    const path = await save(elfFile(segments))
    await using vm = await openElf(path)
    expect(vm.memory.end).toBe(0x1_0000_2000n)
    expect(vm.identity).toEqual({
      name: path.slice(folder.length + 1),
      uuid: '00000000-0000-0000-0000-000000000000',
      bootNonce: '0'.repeat(32),
    })
    expect(vm).not.toHaveProperty('vcpus')
    expect(vm).not.toHaveProperty('pause')
    expect(vm.memory).not.toHaveProperty('write')
    expect(await words(path, [0n, 0x2ff8n, 0x3000n, 0x1_0000_0008n, 0x1_0000_1ff8n])).toEqual([
      at(1, 0),
      at(1, 0x2ff8),
      'outside-ram',
      at(2, 8),
      at(2, 0x1ff8),
    ])
  })

  it('takes a count of program headers from section 0', async () => {
    const path = await save(elfFile(segments, { extended: true }))
    expect(await words(path, [0x1_0000_0008n])).toEqual([at(2, 8)])
  })

  it('takes memory that is listed twice at one place, as dumps with paging have it', async () => {
    const once = elfFile([{ bytes: LOW }, { bytes: Buffer.alloc(0) }])
    const place = BigInt(once.length - LOW.length)
    const path = await save(
      elfFile([{ bytes: LOW }, { physical: 0x1000n, bytes: Buffer.alloc(0), offset: place + 0x1000n, size: 0x2000n }]),
    )
    expect(await words(path, [0x1008n, 0x2ff8n])).toEqual([at(1, 0x1008), at(1, 0x2ff8)])
  })

  it("gives the registers of QEMU's notes", async () => {
    const status = Buffer.alloc(336)
    const notes = Buffer.concat([
      note('CORE', 1, status),
      note('CORE', 1, status),
      note(
        'QEMU',
        0,
        qemuState((offset) => BigInt(offset) << 20n),
      ),
      note(
        'QEMU',
        0,
        qemuState((offset) => BigInt(offset) << 24n, 432),
      ),
      note('VMCOREINFO', 0, Buffer.from('OSRELEASE=6.1')),
    ])
    await using vm = await openElf(await save(elfFile([{ type: 4, bytes: notes }, { bytes: LOW }])))
    const [first, second, ...more] = (await vm.vcpus?.registers()) ?? []
    expect(more).toEqual([])
    const lacks = "QEMU's note does not have it"
    expect(first).toEqual({
      index: 0,
      rsp: 56n << 20n,
      rip: 136n << 20n,
      rflags: 144n << 20n,
      gsBase: 264n << 20n,
      gdtBase: 360n << 20n,
      idtBase: 384n << 20n,
      idtLimit: 0,
      cr0: 392n << 20n,
      cr3: 416n << 20n,
      cr4: 424n << 20n,
      kernelGsBase: 432n << 20n,
      missing: { efer: lacks, lstar: lacks },
    })
    expect(second).toMatchObject({ index: 1, cr3: 416n << 24n, missing: { kernelGsBase: lacks } })
  })

  it("gives what a process's status has where there is no note of QEMU", async () => {
    const status = Buffer.alloc(336)
    status.writeBigUInt64LE(0xffff_ffff_8100_0000n, 240)
    const notes = note('CORE', 1, status)
    await using vm = await openElf(await save(elfFile([{ type: 4, bytes: notes }, { bytes: LOW }])))
    const [vcpu] = (await vm.vcpus?.registers()) ?? []
    expect(vcpu).toMatchObject({ index: 0, rip: 0xffff_ffff_8100_0000n })
    expect(vcpu?.cr3).toBeUndefined()
    expect(vcpu?.missing?.cr3).toContain('no note of QEMU')
  })
})

describe('elf: of Xen', () => {
  const pages = Buffer.concat([LOW, HIGH])
  // In no order, with one page that was gone.
  const frames = [0x10n, 0x11n, 0xffff_ffff_ffff_ffffn, 0x9n, 0x10_0000n]

  it('has each page at its frame', async () => {
    const path = await save(xenFile({ frames, pages }))
    expect(await words(path, [0x1_0000n, 0x1_1ff8n, 0x1_2000n, 0x9008n, 0x1_0000_0ff8n, 0n])).toEqual([
      at(1, 0),
      at(1, 0x1ff8),
      'outside-ram',
      at(2, 8),
      at(2, 0x1ff8),
      'outside-ram',
    ])
  })

  it('gives registers, with the GS base of the privilege level', async () => {
    const status = Buffer.alloc(2 * 5168)
    for (let i = 0; i < 2; i++) {
      for (let offset = 520; offset < 5168; offset += 8) status.writeBigUInt64LE(BigInt(offset), i * 5168 + offset)
      status.writeUInt16LE(i === 0 ? 0x10 : 0x33, i * 5168 + 656)
    }
    await using vm = await openElf(await save(xenFile({ frames, pages, status })))
    const [kernel, user] = (await vm.vcpus?.registers()) ?? []
    expect(kernel).toMatchObject({ index: 0, rip: 648n, rflags: 664n, rsp: 672n, cr0: 4984n, cr3: 5008n, cr4: 5016n })
    expect(kernel).toMatchObject({ gsBase: 5152n, kernelGsBase: 5160n })
    expect(user).toMatchObject({ index: 1, gsBase: 5160n, kernelGsBase: 5152n })
    expect(Object.keys(kernel?.missing ?? {})).toEqual(['efer', 'idtBase', 'idtLimit', 'gdtBase', 'lstar'])
  })

  it.each([
    ['a PV guest', { magic: 0xf00febedn }, 'ERR_CLOUDAPP_UNSUPPORTED', /PV/],
    ['a PV guest by its table', { p2m: true }, 'ERR_CLOUDAPP_UNSUPPORTED', /PV/],
    ['another format version', { format: 1n << 32n }, 'ERR_CLOUDAPP_UNSUPPORTED', /version 1/],
    ['a wrong magic number', { magic: 1n }, 'ERR_CLOUDAPP_SOURCE', /magic/],
    ['another size of pages', { pageSize: 1n << 63n }, 'ERR_CLOUDAPP_SOURCE', /pages of/],
    ['more pages than frames', { count: 6n }, 'ERR_CLOUDAPP_SOURCE', /\.xen_pfn is shorter/],
    ['wild numbers of pages', { count: (1n << 64n) - 1n }, 'ERR_CLOUDAPP_LIMIT', /pages of the Xen dump/],
    ['fewer pages than frames', { pages: LOW }, 'ERR_CLOUDAPP_SOURCE', /\.xen_pages is shorter/],
    ['a wild frame', { frames: [1n << 50n, 0n, 1n, 2n, 3n] }, 'ERR_CLOUDAPP_SOURCE', /52 bits/],
    ['one frame twice', { frames: [1n, 2n, 3n, 4n, 2n] }, 'ERR_CLOUDAPP_SOURCE', /twice/],
    ['half a table of vCPUs', { status: Buffer.alloc(1000) }, 'ERR_CLOUDAPP_SOURCE', /vcpu_guest_context/],
    ['no pages', { without: ['.xen_pages'] }, 'ERR_CLOUDAPP_SOURCE', /0 sections .xen_pages/],
    ['no frames', { without: ['.xen_pfn'] }, 'ERR_CLOUDAPP_SOURCE', /0 sections .xen_pfn/],
    ['no page at all', { frames: [], pages: Buffer.alloc(0) }, 'ERR_CLOUDAPP_SOURCE', /no memory/],
  ])('refuses %s', async (_, change, code, message) => {
    const error = await refusal(xenFile({ frames, pages, ...change }))
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) })
  })
})

describe('elf: hostile files', () => {
  const good = elfFile([{ bytes: LOW }])
  const changed = (write: (bytes: Buffer) => void): Buffer => {
    const bytes = Buffer.from(good)
    write(bytes)
    return bytes
  }
  const load = (physical: bigint, size: bigint, offset = 0n) => ({ physical, size, offset, bytes: Buffer.alloc(0) })
  const notes = (bytes: Buffer) => elfFile([{ type: 4, bytes }, { bytes: LOW }])
  const scattered = Array.from({ length: 65_537 }, (_, i) => load(BigInt(i) * 0x2000n, 0x1000n, 0n))
  const space = { physical: 1n << 40n, bytes: Buffer.alloc(0x1000) }

  it.each([
    ['an empty file', Buffer.alloc(0), 'ERR_CLOUDAPP_SOURCE', /shorter than its header/],
    ['no ELF', Buffer.alloc(4096, 'x'), 'ERR_CLOUDAPP_SOURCE', /no ELF file/],
    ['32 bits', changed((b) => b.writeUInt8(1, 4)), 'ERR_CLOUDAPP_UNSUPPORTED', /x86-64/],
    ['another machine', changed((b) => b.writeUInt16LE(183, 18)), 'ERR_CLOUDAPP_UNSUPPORTED', /x86-64/],
    ['an executable', changed((b) => b.writeUInt16LE(2, 16)), 'ERR_CLOUDAPP_SOURCE', /no core file/],
    ['headers of another size', changed((b) => b.writeUInt16LE(1, 54)), 'ERR_CLOUDAPP_SOURCE', /unknown size/],
    ['headers beyond the end', changed((b) => b.writeBigUInt64LE(1n << 63n, 32)), 'ERR_CLOUDAPP_SOURCE', /cut short/],
    ['more headers than bytes', changed((b) => b.writeUInt16LE(65_000, 56)), 'ERR_CLOUDAPP_SOURCE', /cut short/],
    ['a file cut short', good.subarray(0, good.length - 1), 'ERR_CLOUDAPP_SOURCE', /cut short/],
    ['no segments', elfFile([]), 'ERR_CLOUDAPP_SOURCE', /no memory/],
    ['a wild size', elfFile([load(0n, (1n << 64n) - 1n)]), 'ERR_CLOUDAPP_SOURCE', /52 bits/],
    ['a wild address', elfFile([load((1n << 64n) - 0x1000n, 0x1000n)]), 'ERR_CLOUDAPP_SOURCE', /52 bits/],
    ['a wild offset', elfFile([load(0n, 8n, (1n << 64n) - 8n)]), 'ERR_CLOUDAPP_SOURCE', /cut short/],
    ['overlaps', elfFile([load(0n, 64n, 0n), load(32n, 64n, 0n)]), 'ERR_CLOUDAPP_SOURCE', /0x20 twice/],
    ['too many ranges', elfFile([...scattered, space], { extended: true }), 'ERR_CLOUDAPP_LIMIT', /at most 65536/],
    [
      'many notes',
      elfFile([load(0n, 8n), ...[1, 2].map(() => ({ type: 4, bytes: LOW }))]),
      'ERR_CLOUDAPP_SOURCE',
      /one is/,
    ],
    ['a note cut short', notes(Buffer.alloc(8)), 'ERR_CLOUDAPP_SOURCE', /note is cut short/],
    ['a note without end', notes(Buffer.alloc(12, 0xff)), 'ERR_CLOUDAPP_SOURCE', /note ends behind/],
    [
      'too many vCPUs',
      notes(Buffer.concat(Array.from({ length: 1025 }, () => note('CORE', 1, Buffer.alloc(336))))),
      'ERR_CLOUDAPP_LIMIT',
      /vCPUs/,
    ],
    [
      'names of sections that are nowhere',
      changed((b) => {
        b.writeBigUInt64LE(64n, 40)
        b.writeUInt16LE(2, 60)
        b.writeUInt16LE(7, 62)
      }),
      'ERR_CLOUDAPP_SOURCE',
      /does not exist/,
    ],
  ])('refuses %s', async (_, bytes, code, message) => {
    const error = await refusal(bytes)
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) })
  })

  it('reads no notes longer than its bound', async () => {
    const long = Buffer.alloc(9 << 20)
    expect(await refusal(notes(long))).toMatchObject({
      code: 'ERR_CLOUDAPP_LIMIT',
      message: expect.stringMatching(/notes/),
    })
  })

  it.each([
    ['KDUMP   \0\0\0\0', /kdump/],
    ['makedumpfile\0\0\0\0', /flattened/],
    ['DISKDUMP', /diskdump/],
    ['\x1f\x8b\x08', /gzip/],
    ['QEVM', /migration/],
  ])('names a format it does not read (%j)', async (magic, name) => {
    const bytes = Buffer.alloc(8192)
    bytes.write(magic, 0, 'latin1')
    expect(await refusal(bytes)).toMatchObject({
      code: 'ERR_CLOUDAPP_UNSUPPORTED',
      message: expect.stringMatching(name),
      details: { format: expect.stringMatching(name) },
    })
  })

  it('refuses what is no file, an unknown option and an aborted signal', async () => {
    const path = await save(good)
    await expect(openElf(join(folder, 'absent'))).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_SOURCE' })
    await expect(openElf(folder)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_SOURCE' })
    await expect(openElf('')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    await expect(openElf(path, { frozen: true } as never)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_UNKNOWN_OPTION',
    })
    await expect(openElf(path, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_ABORTED' })
  })
})
