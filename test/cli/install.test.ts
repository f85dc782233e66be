import { randomUUID } from 'node:crypto'
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Broker, openBroker } from '../../src/broker/broker.js'
import { connectBroker } from '../../src/broker/client.js'
import { createKeyFile, loadKey } from '../../src/capabilities/key-files.js'
import { newBootNonce, writeOwners } from '../../src/capabilities/owners.js'
import type { TokenText } from '../../src/capabilities/token.js'
import { syntheticGuest } from '../../src/testing/index.js'
import { unnamed } from '../broker/fake-vm.js'
import { cloudapp } from './cloudapp.js'

const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-install-'))
const file = (name: string) => path.join(folder, name)
const manifest = {
  cloudapp: 1,
  name: 'ids',
  title: 'Rootkit \u001b[31mdetector',
  version: '1.0.0',
  vendor: 'Acme',
  rights: [
    { right: 'vm.info', reason: 'to know its size' },
    { right: 'memory.read', reason: 'to look', optional: true },
  ],
  publishes: ['findings'],
}
let broker: Broker
const json = async (...args: string[]) => JSON.parse((await cloudapp([...args, '--json'])).stdout)

beforeAll(async () => {
  const keys = await Promise.all(['owner', 'broker', 'sd', 'vendor'].map((name) => createKeyFile(file(`${name}.key`))))
  const owner = (keys[0] as (typeof keys)[number]).publicKey
  const guest = syntheticGuest()
  await writeOwners(file('owners.json'), [
    { name: 'web-1', uuid: randomUUID(), bootNonce: newBootNonce(), owner, source: 'synthetic' },
  ])
  broker = await openBroker({
    key: await loadKey(file('broker.key')),
    register: file('owners.json'),
    state: file('state'),
    open: async () => unnamed(guest.vm()),
  })
  await broker.listen({ socket: file('broker.sock') })
  const wider = {
    ...manifest,
    version: '2.0.0',
    rights: [...manifest.rights, { right: 'memory.write', reason: 'to mend' }],
  }
  for (const [name, content] of [
    ['unsigned.json', manifest],
    ['one.json', manifest],
    ['two.json', wider],
  ] as const) {
    writeFileSync(file(name), JSON.stringify(content))
    if (name !== 'unsigned.json') await json('manifest', 'sign', file(name), '--key', file('vendor.key'))
  }
})
afterAll(async () => {
  await broker.close()
  rmSync(folder, { recursive: true })
})

const terms = () => [
  ...['--broker', file('broker.sock'), '--key', file('owner.key'), '--vm', 'web-1'],
  ...['--to', file('sd.key.pub'), '--expires', '10m'],
]

describe('manifest', () => {
  it('is validated with what it asks for in plain words, and refused with the reason', async () => {
    const good = await cloudapp(['manifest', 'validate', file('one.json')])
    expect(good).toMatchObject({ code: 0 })
    expect(good.stdout).toContain("see the VM's size")
    expect(good.stdout).toContain('\\x1b[31mdetector')
    expect(good.stdout).not.toContain('\u001b')
    const unsigned = await cloudapp(['manifest', 'validate', file('unsigned.json')])
    expect(unsigned).toMatchObject({ code: 1, stderr: expect.stringContaining('unsigned') })
    expect(unsigned.stderr).toMatch(/what to do: .*cloudapp manifest sign/)
    // They may end their reason with a full stop or not.
    expect(good.stdout).toContain('They say: to know its size. Risk:')
    const example = await cloudapp(['manifest', 'validate', path.resolve('examples/ids/cloudapp.json')])
    expect(example.stderr).toMatch(/what to do: .*cloudapp manifest sign/)
    writeFileSync(file('forged.json'), readFileSync(file('one.json'), 'utf8').replace('to look', 'to help'))
    const forged = await json('manifest', 'validate', file('forged.json'))
    expect(forged.error).toMatchObject({ code: 'ERR_CLOUDAPP_PROOF', details: { reason: 'signature' } })
    writeFileSync(file('field.json'), JSON.stringify({ ...manifest, price: 3 }))
    expect((await json('manifest', 'validate', file('field.json'))).error.message).toContain('price')
  })

  it('is compared with the one before, widening marked', async () => {
    const { widens, changes } = await json('manifest', 'diff', file('one.json'), file('two.json'))
    expect(widens).toBe(true)
    expect(changes[0]).toMatchObject({ what: 'right-added', right: 'memory.write', widens: true })
    const back = await cloudapp(['manifest', 'diff', file('two.json'), file('one.json')])
    expect(back.stdout).toContain('asks no more for memory.write')
    expect(back.stdout).not.toMatch(/^!/m)
  })
})

describe('install', () => {
  it('shows the rights and gives nothing without consent', async () => {
    const asked = await cloudapp(['install', file('one.json'), ...terms()])
    expect(asked).toMatchObject({ code: 1, stdout: '' })
    expect(asked.stderr).toContain("It must be able to see the VM's size")
    expect(asked.stderr).toContain('nothing was delegated')
    const unsigned = await cloudapp(['install', file('unsigned.json'), ...terms(), '--yes'])
    expect(unsigned).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining('unsigned') })
  })

  it('gives what must be, and of the optional only what was chosen', async () => {
    const { rights } = await json('install', file('one.json'), ...terms(), '--yes')
    expect(rights).toEqual(['vm.info'])
    const chosen = await json('install', file('one.json'), ...terms(), '--yes', '--with', 'memory.read', '--uses', '5')
    await using connection = await connectBroker({ path: file('broker.sock'), key: await loadKey(file('sd.key')) })
    const vm = await connection.redeem(chosen.token as TokenText)
    expect(vm.rights).toEqual(['vm.info', 'memory.read'])
    expect(await vm.budget()).toMatchObject({ uses: 5 })
    const more = await cloudapp(['install', file('one.json'), ...terms(), '--yes', '--with', 'memory.write'])
    expect(more).toMatchObject({ code: 2, stderr: expect.stringContaining('does not ask for memory.write') })
  })

  it('takes no old consent for an update that asks for more, and remembers what was consented to', async () => {
    const kept = ['--consents', file('consents')]
    const install = (name: string, ...more: string[]) =>
      cloudapp(['install', file(name), ...terms(), ...kept, '--yes', ...more])
    // Nothing was consented to before: it is all shown, and all consented to.
    expect((await install('one.json')).code).toBe(0)
    expect((await install('one.json')).stderr).toContain('The same as before')
    const refused = await install('two.json')
    expect(refused).toMatchObject({ code: 1, stdout: '' })
    expect(refused.stderr).toMatch(/needs --wider\n +! asks anew for memory\.write/)
    expect(refused.stderr).toMatch(/what to do: .*--wider/)
    const told = JSON.parse((await install('two.json', '--json')).stdout)
    expect(told.error).toMatchObject({ code: 'ERR_CLOUDAPP_DENIED', details: { reason: 'wider' } })
    // What was refused is not consented to.
    expect((await install('two.json')).code).toBe(1)
    expect((await install('two.json', '--wider')).code).toBe(0)
    expect((await install('two.json')).code).toBe(0)
    // The last consent counts, not the widest.
    expect((await install('one.json')).code).toBe(0)
    expect((await install('two.json')).code).toBe(1)
  })

  it('compares a service of the same name by another publisher with the one before it', async () => {
    const { publicKey } = await createKeyFile(file('other.key'))
    writeFileSync(file('other.json'), JSON.stringify(manifest))
    await json('manifest', 'sign', file('other.json'), '--key', file('other.key'))
    const kept = ['--consents', file('others'), '--yes']
    expect((await cloudapp(['install', file('one.json'), ...terms(), ...kept])).code).toBe(0)
    const other = await cloudapp(['install', file('other.json'), ...terms(), ...kept])
    expect(other).toMatchObject({ code: 1, stderr: expect.stringContaining(`! has another publisher: ${publicKey}`) })
    expect((await cloudapp(['install', file('other.json'), ...terms(), ...kept, '--wider'])).code).toBe(0)
    // Each publisher's own is compared from then on.
    for (const name of ['one.json', 'other.json']) {
      expect((await cloudapp(['install', file(name), ...terms(), ...kept])).stderr).toContain('The same as before')
    }
  })

  it('keeps consents beside the key, and believes none that was changed or that others may write', async () => {
    const [vm = ''] = readdirSync(file('owner.key.consents'))
    const consent = path.join(
      file('owner.key.consents'),
      vm,
      readdirSync(path.join(file('owner.key.consents'), vm))[0] ?? '',
    )
    expect(statSync(consent).mode & 0o777).toBe(0o600)
    const was = readFileSync(consent, 'utf8')
    writeFileSync(consent, was.replace('to look', 'to help'))
    const install = ['install', file('one.json'), ...terms(), '--yes']
    const changed = await cloudapp(install)
    expect(changed.stderr).toMatch(/can not be believed: .*remove it(.|\n)*changed after it was signed/)
    writeFileSync(consent, was)
    chmodSync(consent, 0o666)
    expect((await cloudapp(install)).stderr).toContain('chmod go-w')
    chmodSync(consent, 0o600)
    expect((await json(...install)).rights).toEqual(['vm.info'])
  })
})

describe('token', () => {
  it('is minted, inspected, verified and narrowed', async () => {
    const { publicKey } = await json('keys', 'show', file('broker.key'))
    const register = ['--register', file('owners.json'), '--broker-key', publicKey]
    const { token } = await json(
      ...['token', 'mint', '--key', file('owner.key'), ...register, '--vm', 'web-1', '--to', file('sd.key.pub')],
      ...['--rights', 'memory.read,vm.info', '--expires', '10m'],
    )
    expect(await json('token', 'verify', token, ...register)).toMatchObject({ valid: true })
    const narrow = ['token', 'attenuate', token, '--key', file('sd.key')]
    const made = await cloudapp([
      ...[...narrow, '--rights', 'memory.read', '--process', 'name=nginx,cgroup=/a.slice'],
      ...['--process-memory', '0x1000-0x1fff', '--out', file('narrow.token')],
    ])
    expect(made).toMatchObject({ code: 0, stdout: `${file('narrow.token')}\n` })
    const { grant, blocks } = await json('token', 'inspect', file('narrow.token'))
    expect(blocks).toHaveLength(2)
    expect(grant).toMatchObject({
      rights: ['memory.read'],
      processes: [{ name: 'nginx', cgroup: '/a.slice' }],
      memory: { process: [{ first: '0x1000', last: '0x1fff' }] },
    })
    const words = (await cloudapp(['token', 'inspect', file('narrow.token')])).stdout
    expect(words).toContain('Only the processes: named nginx in /a.slice.')
    const wider = await json(...narrow, '--rights', 'memory.write')
    expect(wider.error).toMatchObject({ code: 'ERR_CLOUDAPP_TOKEN', details: { reason: 'widening' } })
    expect((await cloudapp([...narrow, '--rights', 'memory.write'])).stderr).toMatch(/what to do: ask for no more/)
    const { publicKey: vendor } = await json('keys', 'show', file('vendor.key'))
    const foreign = await json('token', 'verify', token, '--broker-key', publicKey, '--owner', vendor)
    expect(foreign.error).toMatchObject({ details: { reason: 'owner' } })
  })
})
