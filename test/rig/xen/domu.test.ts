import { beforeAll, describe, expect, it } from 'vitest'
import { sharedXen, showConsoles, type XenHost } from './lib/index.js'

interface Check {
  readonly name: string
  readonly status: string
  readonly found: string
  readonly fix?: string
}

interface Report {
  readonly checks: readonly Check[]
  readonly sources: readonly { kind: string; usable: boolean; why: string }[]
}

const DOCTOR = ['node_modules/@cloudapp/sdk/dist/cli/main.js', 'doctor', '--json']

let xen: XenHost

beforeAll(async () => {
  xen = await sharedXen()
}, 900_000)
showConsoles()

function doctorOf(text: string): { check: (name: string) => Check | undefined; xen: { usable: boolean; why: string } } {
  const report: Report = JSON.parse(text)
  const source = report.sources.find(({ kind }) => kind === 'xen')
  if (source === undefined) throw new Error('no word about xen:')
  return { check: (name) => report.checks.find((check) => check.name === name), xen: source }
}

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
