import { chmod, chown, mkdtemp, readdir, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  changeOwners,
  newBootNonce,
  type OwnedVm,
  OwnerRegister,
  openClock,
  parseOwners,
  writeOwners,
} from '../../src/capabilities/index.js'
import { fault, owner, vm } from './rig.js'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'cloudapp-owners-'))
})
afterAll(() => rm(folder, { recursive: true, force: true }))

const web: OwnedVm = { name: 'web-1', ...vm, owner: owner.publicKey, source: 'qemu:/run/web-1.qmp' }

describe('the register of owners', () => {
  test('is written whole and read back', async () => {
    const path = join(folder, 'owners.json')
    await writeOwners(path, [web])
    const register = await OwnerRegister.open(path)
    expect(register.list()).toEqual([web])
    expect(register.byName('web-1')).toEqual(web)
    expect(register.ownerOf(vm.uuid)).toMatchObject({ owner: owner.publicKey, bootNonce: vm.bootNonce })
    expect(register.ownerOf('')).toBeUndefined()
    const restarted = { ...web, bootNonce: newBootNonce() }
    await writeOwners(path, [restarted])
    await register.reload()
    expect(register.ownerOf(vm.uuid)?.bootNonce).toBe(restarted.bootNonce)
    expect(await readdir(folder)).toEqual(['owners.json'])
  })

  test('stays as it was when the file has gone bad', async () => {
    const path = join(folder, 'bad.json')
    await writeOwners(path, [web])
    const register = await OwnerRegister.open(path)
    await writeFile(path, '{')
    await expect(register.reload()).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    expect(register.list()).toEqual([web])
    await chmod(path, 0o666)
    await expect(OwnerRegister.open(path)).rejects.toThrow('chmod go-w')
    await expect(OwnerRegister.open(join(folder, 'none'))).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
    await truncate(path, 5 * 1024 * 1024)
    await chmod(path, 0o644)
    await expect(OwnerRegister.open(path)).rejects.toThrow('more than')
  })

  test('is changed by one writer after the other, and keeps mode and group', async () => {
    const path = join(folder, 'shared.json')
    const vms = Array.from({ length: 8 }, (_, i) => ({ ...web, name: `vm-${i}`, uuid: vm.uuid.replace(/.$/, `${i}`) }))
    await Promise.all(vms.map((one) => changeOwners(path, (all) => [...all, one], { create: true })))
    expect((await OwnerRegister.open(path)).list()).toHaveLength(8)
    expect((await stat(path)).mode & 0o777).toBe(0o644)
    await chmod(path, 0o640)
    // Another group can only be given by root.
    const gid = process.getuid?.() === 0 ? 12 : (await stat(path)).gid
    await chown(path, process.getuid?.() ?? 0, gid)
    await changeOwners(path, (all) => all.slice(1))
    const { mode, gid: after } = await stat(path)
    expect([mode & 0o777, after]).toEqual([0o640, gid])
    await expect(changeOwners(path, (all) => [...all, { ...web, name: 'a b' }])).rejects.toThrow("'name' must be")
    expect((await OwnerRegister.open(path)).list()).toHaveLength(7)
    expect((await readdir(folder)).filter((name) => name.startsWith('shared'))).toEqual(['shared.json'])
  })

  test('waits for another writer only so long', async () => {
    const path = join(folder, 'locked.json')
    await writeOwners(path, [web])
    await writeFile(`${path}.lock`, '')
    const error = await changeOwners(path, () => []).catch((reason: unknown) => reason)
    expect(error).toMatchObject({ code: 'ERR_CLOUDAPP_TIMEOUT', message: expect.stringContaining(`${path}.lock`) })
    expect((await OwnerRegister.open(path)).list()).toEqual([web])
    await expect(changeOwners(join(folder, 'none', 'x.json'), () => [])).rejects.toThrow('ENOENT')
  })

  test.each([
    ['not JSON', '['],
    ['it must be', '[]'],
    ['it must be', '{"version":2,"vms":[]}'],
    ["unknown field 'x'", '{"version":1,"vms":[],"x":1}'],
    ['VM 0: not an object', '{"version":1,"vms":[null]}'],
    ["VM 0: unknown field 'extra'", JSON.stringify({ version: 1, vms: [{ ...web, extra: 1 }] })],
    ["'name' must be", JSON.stringify({ version: 1, vms: [{ ...web, name: 'a b' }] })],
    ["'owner' must be a public key", JSON.stringify({ version: 1, vms: [{ ...web, owner: 'me' }] })],
    ['uuid is 36', JSON.stringify({ version: 1, vms: [{ ...web, uuid: 'x' }] })],
    ['boot nonce is 32', JSON.stringify({ version: 1, vms: [{ ...web, bootNonce: 'x' }] })],
    ["'source' must be text", JSON.stringify({ version: 1, vms: [{ ...web, source: 7 }] })],
    ['the name web-1 is there twice', JSON.stringify({ version: 1, vms: [web, web] })],
  ])('%s: is refused with the place', (message, text) => {
    expect(fault(() => parseOwners(text)).message).toContain(message)
  })
})

describe('the clock', () => {
  function times(start: number) {
    const state = { wall: start, mono: 1000 }
    return { state, wall: () => state.wall, monotonic: () => state.mono }
  }

  test('goes on when the system clock is set back, and follows it ahead', () => {
    const { state, ...sources } = times(1_000_000)
    const clock = openClock(sources)
    expect(clock.now()).toBe(1_000_000)
    state.wall -= 500_000
    state.mono += 10
    expect(clock.now()).toBe(1_000_010)
    state.wall = 2_000_000
    expect(clock.now()).toBe(2_000_000)
    state.wall = 0
    state.mono += 5
    expect(clock.now()).toBe(2_000_005)
  })

  test('starts where it was when the system clock was set back over a restart', async () => {
    const path = join(folder, 'clock')
    const { state, ...sources } = times(1_000_000)
    const clock = openClock({ path, ...sources })
    for (let i = 0; i < 50; i++) {
      state.mono += 1000
      state.wall += 1000
      clock.now()
    }
    const last = clock.now()
    clock.close()
    const { state: later, ...after } = times(0)
    const again = openClock({ path, ...after })
    expect(again.now()).toBeGreaterThanOrEqual(last)
    later.mono += 60_000
    expect(again.now()).toBeGreaterThanOrEqual(last + 60_000)
    again.close()
  })

  test('does not run ahead, however often it is restarted', () => {
    const path = join(folder, 'clock-restarts')
    const { state, ...sources } = times(1_000_000)
    for (let i = 0; i < 200; i++) {
      const clock = openClock({ path, ...sources })
      clock.now()
      state.wall += 10
      state.mono += 10
      clock.close()
    }
    const clock = openClock({ path, ...sources })
    expect(clock.now() - state.wall).toBeLessThanOrEqual(5000)
    clock.close()
  })

  test('survives a torn write and refuses a file of nonsense', async () => {
    const path = join(folder, 'clock-torn')
    const { state, ...sources } = times(1_000_000)
    const clock = openClock({ path, ...sources })
    clock.now()
    state.wall += 100_000
    const last = clock.now()
    clock.close()
    expect((await stat(path)).size).toBe(128)
    await truncate(path, 100)
    const back = openClock({ path, wall: () => 0, monotonic: () => 0 })
    // One slot is left: at worst the one before the last.
    expect(back.now()).toBeGreaterThanOrEqual(Math.min(1_000_000, last))
    back.close()
    await writeFile(path, 'nonsense')
    expect(fault(() => openClock({ path })).code).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
  })
})
