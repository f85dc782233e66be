import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { createKeyFile } from '../../src/capabilities/key-files.js'
import { OwnerRegister } from '../../src/capabilities/owners.js'
import { syntheticGuest } from '../../src/testing/index.js'
import { cloudapp } from './cloudapp.js'

const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-vm-'))
const file = (name: string) => path.join(folder, name)
const register = ['--register', file('owners.json')]
const uuid = '0b1f6c1e-7f0a-4c57-9d6e-0d7c5b6f2a11'
const entry = () => ['--owner', file('owner.key.pub'), '--source', `raw:${path.relative(process.cwd(), file('ram'))}`]
const json = async (...args: string[]) => JSON.parse((await cloudapp([...args, ...register, '--json'])).stdout)

beforeAll(async () => {
  await createKeyFile(file('owner.key'))
  await syntheticGuest().write(file('ram'))
})
afterAll(() => rmSync(folder, { recursive: true }))

it('enters VMs in a register that a broker reads, lists them, renews a boot, takes them out', async () => {
  const added = await cloudapp(['vm', 'add', 'web-1', ...entry(), ...register])
  expect(added).toMatchObject({ code: 0, stderr: expect.stringContaining('SIGHUP') })
  const second = await json(
    'vm',
    'add',
    'web-2',
    '--owner',
    file('owner.key.pub'),
    '--source',
    'xen:web-2',
    '--uuid',
    uuid,
  )
  expect(second).toMatchObject({ name: 'web-2', uuid, source: 'xen:web-2' })

  const before = (await OwnerRegister.open(file('owners.json'))).byName('web-1')
  // The broker runs in another folder.
  expect(before).toMatchObject({ source: `raw:${file('ram')}`, uuid: expect.stringMatching(/^[0-9a-f-]{36}$/) })
  expect((await json('vm', 'list')).vms).toHaveLength(2)
  expect((await cloudapp(['vm', 'list', ...register])).stdout).toMatch(/^web-2 +0b1f6c1e-.+ed25519:.+xen:web-2$/m)

  const { bootNonce } = await json('vm', 'restarted', 'web-1')
  const { bootNonce: was, ...kept } = before ?? { bootNonce: '' }
  expect(bootNonce).not.toBe(was)
  expect((await OwnerRegister.open(file('owners.json'))).byName('web-1')).toEqual({ ...kept, bootNonce })
  expect(await json('vm', 'remove', uuid)).toMatchObject({ name: 'web-2', uuid })
  expect((await json('vm', 'list')).vms).toHaveLength(1)
})

it('refuses what is wrong, and leaves the register as it was', async () => {
  const before = readFileSync(file('owners.json'), 'utf8')
  const refusals: [string[], RegExp][] = [
    [['add', 'web-1', ...entry()], /has a VM 'web-1'.*already.*vm remove web-1/],
    [['add', 'a b', ...entry()], /'name' must be/],
    [['add', 'web-3', '--owner', 'me', '--source', 'raw:x'], /me can not be opened/],
    [
      ['add', 'web-3', '--owner', file('owner.key.pub'), '--source', 'vmware:x', '--uuid', uuid],
      /'vmware' is not known/,
    ],
    [['add', 'web-3', '--owner', file('owner.key.pub'), '--source', 'xen:x', '--uuid', 'x'], /uuid is 36/],
    [['add', 'web-3', '--owner', file('owner.key.pub'), '--source', `raw:${file('none')}`], /none/],
    [['restarted', 'web-9'], /no VM 'web-9'/],
    [['remove', 'web-9'], /no VM 'web-9'/],
  ]
  for (const [args, message] of refusals) {
    const { code, stdout, stderr } = await cloudapp(['vm', ...args, ...register])
    expect({ args, code, stdout }).toEqual({ args, code: 1, stdout: '' })
    expect(stderr).toMatch(message)
  }
  expect(readFileSync(file('owners.json'), 'utf8')).toBe(before)
  // A register that is not there is made by the first VM, not by what names one that can not be in it.
  const none = await cloudapp(['vm', 'restarted', 'web-1', '--register', file('none.json')])
  expect(none).toMatchObject({ code: 1, stderr: expect.stringContaining('ERR_CLOUDAPP_NOT_FOUND') })
  writeFileSync(file('bad.json'), '{')
  const bad = await cloudapp(['vm', 'add', 'web-1', ...entry(), '--register', file('bad.json')])
  expect(bad).toMatchObject({ code: 1, stderr: expect.stringContaining('not JSON') })
})
