import { describe, expect, it } from 'vitest'
import { ramRegions } from '../../../src/vmi/sources/qemu-map.js'

const view = (lines: readonly string[], space = 'memory'): string =>
  `FlatView #0\n AS "I/O", root: io\n Root memory region: io\n  ${'0'.repeat(16)}-00000000000003ff (prio 0, ram): ram0\n\n` +
  `FlatView #1\n AS "${space}", root: system\n AS "cpu-memory-0", root: system\n Root memory region: system\n${lines.join('\n')}\n\n`
const range = (first: number, end: number, kind: string, what: string): string =>
  `  ${first.toString(16).padStart(16, '0')}-${(end - 1).toString(16).padStart(16, '0')} (prio 0, ${kind}): ${what}`
const MiB = 2 ** 20
const GiB = 2 ** 30
const Q35 = [
  range(0, 0xc3000, 'ram', 'ram0'),
  range(0xc3000, 0xe8000, 'rom', 'ram0 @00000000000c3000'),
  range(0xe8000, 2 * GiB, 'ram', 'ram0 @00000000000e8000 KVM'),
  range(0xb000_0000, 0xc000_0000, 'i/o', 'pcie-mmcfg-mmio'),
  range(0xfffc_0000, 4 * GiB, 'rom', 'pc.bios'),
  range(4 * GiB, 6 * GiB, 'ram', 'ram0 @0000000080000000'),
]
const code = (value: string) => expect.objectContaining({ code: value })

describe("QEMU's memory map", () => {
  it('gives RAM on both sides of the PCI hole, and a write-protected BIOS as part of it', () => {
    expect(ramRegions(view(Q35), ['ram0'], BigInt(4 * GiB))).toEqual([
      { address: 0n, size: BigInt(2 * GiB), offset: 0n },
      { address: BigInt(4 * GiB), size: BigInt(2 * GiB), offset: BigInt(2 * GiB) },
    ])
  })

  it('does not join what lies apart in the file', () => {
    const lines = [range(0, MiB, 'ram', 'ram0'), range(MiB, 2 * MiB, 'ram', 'ram0 @0000000000200000')]
    expect(ramRegions(view(lines), ['ram0'], BigInt(4 * MiB))).toHaveLength(2)
  })

  it('knows a backend by any of its names', () => {
    expect(
      ramRegions(view([range(0, MiB, 'ram', '/objects/ram0')]), ['ram0', '/objects/ram0'], BigInt(MiB)),
    ).toHaveLength(1)
  })

  it.each([
    ['no address space "memory"', view(Q35, 'other'), 'ERR_CLOUDAPP_SOURCE'],
    ['nothing at all', '', 'ERR_CLOUDAPP_SOURCE'],
    ['no such backend', view([range(0, MiB, 'ram', 'pc.ram')]), 'ERR_CLOUDAPP_SOURCE'],
    ['RAM past the end of its file', view([range(0, 8 * GiB, 'ram', 'ram0')]), 'ERR_CLOUDAPP_PROTOCOL'],
    ['RAM that overlaps itself', view([...Q35, range(0, MiB, 'ram', 'ram0')]), 'ERR_CLOUDAPP_PROTOCOL'],
    ['a range that ends before it begins', view([range(MiB, 4096, 'ram', 'ram0')]), 'ERR_CLOUDAPP_PROTOCOL'],
    [
      'more runs than a machine can have',
      view(Array.from({ length: 400 }, (_, i) => range(i * 8192, i * 8192 + 4096, 'ram', 'ram0'))),
      'ERR_CLOUDAPP_PROTOCOL',
    ],
  ])('refuses %s', (_what, text, expected) => {
    expect(() => ramRegions(text, ['ram0'], BigInt(4 * GiB))).toThrow(code(expected))
  })
})
