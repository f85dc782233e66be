import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openBroker } from '../../src/broker/broker.js'
import { KeyPair } from '../../src/capabilities/keys.js'
import { mintToken } from '../../src/capabilities/mint.js'
import { newBootNonce, writeOwners } from '../../src/capabilities/owners.js'
import { tokenToText } from '../../src/capabilities/token.js'
import { cloudapp } from './cloudapp.js'

const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-flask-'))
const file = (name: string) => path.join(folder, name)
const [owner, broker, sd] = [KeyPair.generate(), KeyPair.generate(), KeyPair.generate()]
const vm = { uuid: '00000000-0000-4000-8000-000000000002', bootNonce: newBootNonce() }
const service = '00000000-0000-4000-8000-000000000001'

beforeAll(async () => {
  mkdirSync(file('state'))
  await writeOwners(file('owners.json'), [{ name: 'web', ...vm, owner: owner.publicKey, source: 'xen:web' }])
  await (await openBroker({ key: broker, register: file('owners.json'), state: file('state') })).close()
})
afterAll(() => rmSync(folder, { recursive: true }))

function plan(more: { key?: KeyPair; holder?: KeyPair; by?: KeyPair; uses?: number; unknown?: boolean } = {}): string {
  const { key = sd, holder = sd, by = owner } = more
  const token = mintToken({
    owner: by,
    vm,
    holder: holder.publicKey,
    rights: ['memory.read', 'vm.pause'],
    audience: broker.publicKey,
    expires: '1h',
    ...(more.uses === undefined ? {} : { uses: more.uses }),
  })
  const domains = [
    { name: 'ids', uuid: service, key: key.publicKey },
    { name: 'web', uuid: vm.uuid },
  ]
  const all = { broker: broker.publicKey, register: 'owners.json', state: 'state', domains }
  const delegations = [{ service: 'ids', token: tokenToText(token) }]
  writeFileSync(file('plan.json'), JSON.stringify({ ...all, delegations, ...(more.unknown ? { extra: 1 } : {}) }))
  return file('plan.json')
}

describe('cloudapp flask compile', () => {
  it('prints the module, and to stderr the labels', async () => {
    const { code, stdout, stderr } = await cloudapp(['flask', 'compile', '--plan', plan()])
    expect(code).toBe(0)
    expect(stdout).toMatch(/^gen_bool\(ca_\w+_vm_pause, false\)\n/)
    expect(stdout).toContain(':mmu { map_read };')
    expect(stderr).toContain('ids: seclabel = "system_u:system_r:ca_00000000000040008000000000000001_t"')
  })

  it('prints one JSON document; --private has building labels, --locked the latch', async () => {
    const { stdout } = await cloudapp(['flask', 'compile', '--plan', plan(), '--private', '--locked', '--json'])
    const { labels, booleans, module } = JSON.parse(stdout)
    expect(labels[0].initSeclabel).toMatch(/_building$/)
    expect(booleans).toEqual([])
    expect(module).toContain('gen_bool(ca_live, true)')
  })

  it.each([
    ['a limit Xen can not enforce', { uses: 2 }, /limited in uses/],
    ['a service domain with another key', { key: KeyPair.generate() }, /made out to/],
    ['a token of somebody who does not own the VM', { by: KeyPair.generate() }, /not signed by the owner/],
    ['an unknown field', { unknown: true }, /extra/],
  ])('refuses %s', async (_, more, why) => {
    const { code, stderr } = await cloudapp(['flask', 'compile', '--plan', plan(more)])
    expect(code).toBe(1)
    expect(stderr).toMatch(why)
  })

  it("says where Xen's own policy comes from", async () => {
    const out = ['--out', file('policy'), '--xen-source', file('nowhere')]
    const { code, stderr } = await cloudapp(['flask', 'compile', '--plan', plan(), ...out])
    expect(code).toBe(1)
    expect(stderr).toMatch(/apt-get source xen/)
  })
})
