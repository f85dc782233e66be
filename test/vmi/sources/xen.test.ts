import { existsSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { loadShim } from '../../../src/native/shim.js'
import { openVm } from '../../../src/vmi/sources/open.js'
import { openXen } from '../../../src/vmi/sources/xen.js'

// With Xen: test/rig/xen, in a control domain.
describe.skipIf(existsSync('/sys/hypervisor/version/major'))('the Xen source on a machine without Xen', () => {
  it('says what is missing and what to do', async () => {
    for (const open of [openVm('xen:web-1'), openXen('3'), openXen('1b4e28ba-2fa1-11d2-883f-0016d3cca427')]) {
      await expect(open).rejects.toMatchObject({
        code: 'ERR_CLOUDAPP_UNSUPPORTED',
        message: expect.stringMatching(/does not run under Xen.*boot it with Xen.*control domain/),
      })
    }
  })

  it('checks its options first', async () => {
    await expect(openXen('web-1', { mapped: -1 })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    await expect(openXen('web-1', { bootNonce: 'x' })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    // @ts-expect-error no such option
    await expect(openXen('web-1', { maped: 1 })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_UNKNOWN_OPTION',
      message: expect.stringContaining('mapped'),
    })
  })

  it('gives an error from each call of the native library', () => {
    const shim = loadShim()
    const words = new BigUint64Array(16)
    const key = Buffer.from('/local/domain/0/name\0')
    const results = [
      shim.ca_xen_domains(0, words, 1),
      shim.ca_xen_store(key, words, 8),
      shim.ca_xen_open(1, 0, 0n),
      shim.ca_xen_vcpu(1, 0, words),
      shim.ca_xen_pause(1),
      shim.ca_xen_unpause(1),
    ]
    expect(new Set(results)).toEqual(new Set([-10]))
    expect([shim.ca_xen_domains(0, words, 0), shim.ca_xen_open(1, 8, 0n), shim.ca_xen_open(1, 0, 4096n)]).toEqual([
      -1, -1, -1,
    ])
    expect(shim.ca_xen_counts(0, words)).toBe(-2)
  })
})
