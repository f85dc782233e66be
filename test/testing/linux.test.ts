import { describe, expect, it } from 'vitest'
import { type SyntheticGuestOptions, syntheticGuest } from '../../src/testing/index.js'
import { Linux } from '../../src/vmi/linux/index.js'

const KERNELS: SyntheticGuestOptions[] = [
  {},
  { release: '5.10.0-30-amd64', seed: 2, levels: 4, pages: '4K' },
  { release: '6.1.0-test', seed: 3, levels: 4, pages: '1G', kaslr: false },
  { release: '6.6.7', seed: 4 },
  { release: '6.12.9', seed: 5, cpus: 1 },
  { release: '6.16.0', seed: 6, levels: 4 },
  { release: '7.1.0', seed: 7 },
  { release: '6.1.0-unnamed', seed: 8, kallsymsNamed: false },
]

describe('Linux.attach on a synthetic guest', () => {
  it.each(KERNELS)('sees what is there, with no configuration: %o', async (options) => {
    const guest = syntheticGuest(options)
    const linux = await Linux.attach(guest.vm())
    expect(linux.release).toBe(guest.release)
    const tasks = await linux.tasks({ threads: true })
    expect(tasks).toEqual(
      guest.tasks().map(({ pid, tgid, ppid, comm, uid, kernelThread, address, dtb }) => ({
        pid,
        tgid,
        ppid,
        comm,
        uid,
        kernelThread,
        task: address,
        dtb,
      })),
    )
    const modules = await linux.modules()
    const expected = guest.modules().reverse()
    expect(modules.map(({ name, module, size }) => ({ name, module, size }))).toEqual(
      expected.map(({ name, address, size }) => ({ name, module: address, size })),
    )
    for (const [i, { ranges }] of modules.entries()) {
      const text = ranges.filter(({ kind }) => kind === 'text').map(({ start, end }) => ({ start, end }))
      expect(text).toEqual([expected[i]?.text])
    }
  })
})
