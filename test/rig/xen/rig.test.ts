import { randomBytes } from 'node:crypto'
import { beforeAll, describe, expect, it } from 'vitest'
import { sharedXen, showConsoles, type XenHost } from './lib/index.js'

const DEVICES = ['xen-evtchn', 'xen-gntdev', 'xen-gntalloc', 'xen-privcmd', 'xenfs']

let xen: XenHost

beforeAll(async () => {
  xen = await sharedXen()
}, 900_000)
showConsoles()

describe('dom0', () => {
  it('runs commands, also side by side', async () => {
    expect((await xen.dom0.run('xl info | grep ^xen_version')).stdout).toMatch(/4\.17/)
    await expect(xen.dom0.run('echo no >&2; exit 4')).rejects.toThrow(/ended with 4 in the guest\nno/)
    // The first waits for the second.
    const first = xen.dom0.run('until [ -e /tmp/second ]; do sleep 0.1; done; echo first', { timeoutMs: 120_000 })
    await xen.dom0.run('touch /tmp/second')
    expect((await first).stdout).toBe('first\n')
    // Nor do programs of one command that write at once take each other's lines.
    const lines = await xen.dom0.run('for i in $(seq 60); do echo line & done; wait')
    expect(lines.stdout).toBe('line\n'.repeat(60))
  })

  it("keeps programs' vector registers apart, which Node dies without", async () => {
    const { stdout } = await xen.dom0.run('/app/registers 5', { check: false })
    expect(stdout).toMatch(/^(0 of \d+ wrong\n){4}$/)
  })

  it('passes files in and out', async () => {
    const bytes = randomBytes(200_001)
    await xen.dom0.push('/tmp/file', bytes)
    expect((await xen.dom0.run('stat -c %s /tmp/file')).stdout).toBe('200001\n')
    expect((await xen.dom0.pull('/tmp/file')).equals(bytes)).toBe(true)
    await xen.dom0.push('/tmp/empty', '')
    expect(await xen.dom0.pull('/tmp/empty')).toHaveLength(0)
  })
})

describe.each(['pvh', 'pv'] as const)('a %s guest with Node', (kind) => {
  it("runs commands and Node, has Xen's devices, and takes files and gives them", async () => {
    const guest = await xen.createGuest({ name: `node-${kind}`, kind, node: true, modules: DEVICES })
    const { stdout } = await guest.run('uname -r; cat /sys/hypervisor/guest_type; ls /dev/xen')
    expect(stdout.split('\n')).toEqual(
      expect.arrayContaining([xen.kernel.release, kind.toUpperCase(), 'evtchn', 'gntalloc', 'gntdev', 'privcmd']),
    )
    expect(await guest.run('echo out; echo err >&2; exit 3', { check: false })).toEqual({
      status: 3,
      stdout: 'out\n',
      stderr: 'err\n',
    })
    await expect(guest.run('exit 4')).rejects.toThrow(/ended with 4/)
    const small = randomBytes(100)
    const large = randomBytes(300_000)
    const other = randomBytes(70_000)
    // All through one disk that dom0 uses too.
    const moved = [guest.push('/tmp/small', small), guest.push('/tmp/large', large), xen.dom0.push('/tmp/other', other)]
    await Promise.all(moved)
    expect((await guest.pull('/tmp/small')).equals(small)).toBe(true)
    expect((await guest.pull('/tmp/large')).equals(large)).toBe(true)
    expect((await xen.dom0.pull('/tmp/other')).equals(other)).toBe(true)
    // The package in it: this reads the guest's own name in xenstore and says what a domU can not do.
    const doctor = await guest.node(['node_modules/@cloudapp/sdk/dist/cli/main.js', 'doctor', '--json'])
    expect(JSON.parse(doctor.stdout)).toMatchObject({ usable: true })
    await guest.destroy()
  })
})
