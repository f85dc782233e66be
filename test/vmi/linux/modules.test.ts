import { describe, expect, it } from 'vitest'
import { listModules } from '../../../src/vmi/linux/modules.js'
import { perCpuAddress } from '../../../src/vmi/linux/percpu.js'
import { DIRECT, TinyKernel } from './ram.js'

const HEAD = 0x5000
const COMMON = {
  'module.state': [0, 4],
  'module.list': [8, 16],
  'module.name': [24, 56],
  'module.refcnt': [0x200, 4],
  'module.kallsyms': [0x208, 8],
} as const

function add(kernel: TinyKernel, at: number, name: string): void {
  kernel.ram.write(name, at + 24)
  kernel.ram.writeInt32LE(3, at + 0x200)
  kernel.pointer(at + 0x208, at + 0x300)
}

describe('modules', () => {
  it('reads the memory of modules before Linux 6.4', async () => {
    const kernel = TinyKernel.create(
      { modules: HEAD },
      {
        ...COMMON,
        'module.core_layout': [0x100, 80],
        'module.init_layout': [0x150, 80],
        'module_layout.base': [0, 8],
        'module_layout.size': [8, 4],
        'module_layout.text_size': [12, 4],
        'module_layout.ro_size': [16, 4],
      },
    )
    add(kernel, 0x2_0000, 'first')
    kernel.ring(HEAD, 0x2_0008)
    kernel.pointer(0x2_0100, 0xffff_ffff_c000_0000n)
    kernel.ram.writeUInt32LE(0x4000, 0x2_0108)
    kernel.ram.writeUInt32LE(0x1000, 0x2_010c)
    kernel.ram.writeUInt32LE(0x2000, 0x2_0110)
    const { modules } = await listModules(kernel, {}, 'throw')
    const base = 0xffff_ffff_c000_0000n
    expect(modules).toEqual([
      {
        name: 'first',
        base,
        size: 0x4000,
        state: 'live',
        refcount: 2,
        module: DIRECT + 0x2_0000n,
        kallsyms: DIRECT + 0x2_0300n,
        ranges: [
          { start: base, end: base + 0x1000n, kind: 'text' },
          { start: base + 0x1000n, end: base + 0x2000n, kind: 'rodata' },
          { start: base + 0x2000n, end: base + 0x4000n, kind: 'data' },
        ],
      },
    ])
  })

  it('reads the memory of modules since Linux 6.4', async () => {
    const kernel = TinyKernel.create(
      { modules: HEAD },
      {
        ...COMMON,
        'module.mem': [0x80, 7 * 24],
        module_memory: [0, 24],
        'module_memory.base': [0, 8],
        'module_memory.size': [8, 4],
      },
    )
    add(kernel, 0x2_0000, 'second')
    add(kernel, 0x2_1000, 'third')
    kernel.ram.writeUInt32LE(2, 0x2_1000)
    kernel.ring(HEAD, 0x2_0008, 0x2_1008)
    const base = 0xffff_ffff_c010_0000n
    for (const i of [0, 1, 4]) {
      kernel.pointer(0x2_0080 + 24 * i, base + BigInt(0x10_0000 * i))
      kernel.ram.writeUInt32LE(0x1000 * (i + 1), 0x2_0088 + 24 * i)
    }
    const { modules } = await listModules(kernel, {}, 'throw')
    expect(modules.map(({ name, state, size }) => [name, state, size])).toEqual([
      ['second', 'live', 0x8000],
      ['third', 'going', 0],
    ])
    expect(modules[0]?.base).toBe(base)
    expect(modules[0]?.ranges).toEqual([
      { start: base, end: base + 0x1000n, kind: 'text' },
      { start: base + 0x10_0000n, end: base + 0x10_2000n, kind: 'data' },
      { start: base + 0x40_0000n, end: base + 0x40_5000n, kind: 'init-text' },
    ])
    kernel.pointer(0x2_1008, 0x2_0008)
    await expect(listModules(kernel, {}, 'throw')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_GUEST_CORRUPT' })
    await expect(listModules(kernel, { limit: 1 }, 'report')).resolves.toMatchObject({ end: 'limit' })
  })

  it('lists none for a kernel without modules, and says so of one it does not understand', async () => {
    await expect(listModules(TinyKernel.create({}, {}), {}, 'throw')).resolves.toMatchObject({ modules: [] })
    await expect(listModules(TinyKernel.create({ modules: HEAD }, COMMON), {}, 'throw')).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_PROFILE',
      details: { part: 'module' },
    })
  })
})

describe('per-CPU variables', () => {
  it('adds the offset of the CPU', async () => {
    const kernel = TinyKernel.create({ __per_cpu_offset: 0x6000 }, {})
    kernel.pointer(0x6000, DIRECT + 0x10_0000n)
    await expect(perCpuAddress(kernel, 0x31c40n)).resolves.toEqual([DIRECT + 0x13_1c40n])
    // Since 6.15 the variable is an address and the offset wraps around.
    kernel.pointer(0x6000, BigInt.asUintN(64, DIRECT - 0xffff_ffff_a000_0000n))
    await expect(perCpuAddress(kernel, 0xffff_ffff_a000_0040n)).resolves.toEqual([DIRECT + 0x40n])
    await expect(perCpuAddress(kernel, 0n, [1])).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
  })
})
