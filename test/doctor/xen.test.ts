import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { checkXen } from '../../src/cli/doctor/xen.js'

const folders: string[] = []
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true })
})

/** A machine, as far as the checks look at it: what its files hold. The rig asks real ones. */
function machine(files: Readonly<Record<string, string>>): string {
  const root = mkdtempSync(path.join(tmpdir(), 'doctor-'))
  folders.push(root)
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(path.dirname(path.join(root, name)), { recursive: true })
    writeFileSync(path.join(root, name), content)
  }
  return root
}

const XEN = { 'sys/hypervisor/type': 'xen\n', 'proc/xen/capabilities': '' }
const DOM0 = { ...XEN, 'proc/xen/capabilities': 'control_d\n' }
const DEVICES = Object.fromEntries(['privcmd', 'evtchn', 'gntdev', 'gntalloc'].map((name) => [`dev/xen/${name}`, '']))
const GRANTS = { 'sys/module/xen_gntalloc/parameters/limit': '1024\n' }
const LIBRARIES = Object.fromEntries(
  ['libxenctrl.so.4.17', 'libxenforeignmemory.so.1', 'libxenstore.so.4', 'libxenevtchn.so.1', 'libxengnttab.so.1'].map(
    (name) => [`usr/lib/x86_64-linux-gnu/${name}`, ''],
  ),
)
const MODULE = { 'sys/module/xen_privcmd/x': '' }
const of = (files: Readonly<Record<string, string>>, asks = () => false) =>
  Object.fromEntries(checkXen(machine(files), asks).map((check) => [check.name, check]))

describe('doctor, about Xen', () => {
  it('says how to get Xen where there is none', () => {
    expect(of({})).toEqual({
      xen: expect.objectContaining({ status: 'missing', fix: expect.stringContaining('xen-hypervisor-4.17-amd64') }),
    })
  })

  it('is content with a dom0 that has all', () => {
    const checks = of({ ...DOM0, ...DEVICES, ...GRANTS, ...LIBRARIES })
    expect(Object.values(checks).map(({ status }) => status)).toEqual(['ok', 'ok', 'ok', 'ok'])
    expect(checks['xen grants']?.found).toMatch(/^1024 .*31 vchans/)
  })

  it('names each device and library that is missing, and what gives it', () => {
    const { 'dev/xen/gntdev': _, ...devices } = DEVICES
    const { 'usr/lib/x86_64-linux-gnu/libxenctrl.so.4.17': __, ...libraries } = LIBRARIES
    const checks = of({ ...DOM0, ...devices, ...libraries })
    expect(checks['xen devices']).toMatchObject({ found: 'no /dev/xen/gntdev', fix: 'modprobe -a xen-gntdev' })
    expect(checks['xen libraries']).toMatchObject({
      found: 'no libxenctrl',
      fix: expect.stringContaining('apt-get install xen-utils-4.17'),
    })
  })

  it.each([
    ['restricted', MODULE, 'missing', /XSA-482/, /broker in dom0.*unrestricted=1/],
    ['without the module', {}, 'missing', /not loaded/, /broker in dom0/],
  ] as const)('a domU %s', (_, files, status, found, fix) => {
    const { xen } = of({ ...XEN, ...DEVICES, ...LIBRARIES, ...files })
    expect(xen).toMatchObject({ status, found: expect.stringMatching(found), fix: expect.stringMatching(fix) })
  })

  it('a domU whose privcmd is not restricted', () => {
    expect(of({ ...XEN, ...DEVICES, ...MODULE }, () => true).xen).toMatchObject({ status: 'ok' })
  })

  it('a domU that can not even ask', () => {
    const asks = () => {
      throw new Error('libxenctrl.so.4.17 can not be loaded')
    }
    const { xen } = of({ ...XEN, ...DEVICES, ...MODULE }, asks)
    expect(xen).toMatchObject({ status: 'missing', found: expect.stringContaining('libxenctrl.so.4.17 can not') })
  })
})
