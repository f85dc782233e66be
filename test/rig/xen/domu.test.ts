import { beforeAll, describe, expect, it } from 'vitest'
import { DOCTOR, doctorOf } from './lib/doctor.js'
import { sharedXen, showConsoles, type XenHost } from './lib/index.js'

let xen: XenHost

beforeAll(async () => {
  xen = await sharedXen()
}, 900_000)
showConsoles()

describe('doctor', () => {
  it('knows a domU whose privcmd is restricted (XSA-482), and one whose is not', async () => {
    const modules = ['xen-evtchn', 'xen-gntdev', 'xen-gntalloc', 'xenfs', 'xen-privcmd']
    const guest = await xen.createGuest({ name: 'domu', kind: 'pv', node: true, modules })
    const { check, xen: source } = doctorOf((await guest.node(DOCTOR)).stdout)
    expect(check('xen')).toMatchObject({
      status: 'missing',
      found: expect.stringContaining('XSA-482'),
      fix: expect.stringMatching(/broker in dom0.*unrestricted=1/),
    })
    expect(source.usable).toBe(false)
    // What doctor advises, done.
    await guest.run('umount /proc/xen; rmmod xenfs xen_privcmd; insmod /lib/rig/xen_privcmd.ko unrestricted=1')
    const again = doctorOf((await guest.node(DOCTOR)).stdout)
    expect(again.check('xen')).toMatchObject({ status: 'ok', found: expect.stringContaining('unrestricted') })
    // Xen itself, without FLASK, still refuses.
    expect(again.xen.usable).toBe(false)
    await guest.destroy()
  })
})
