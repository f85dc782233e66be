import { describe, expect, it } from 'vitest'
import { findDomain, introduce, withdraw } from '../../../src/transport/xen/introductions.js'
import type { XenStore } from '../../../src/transport/xen/xenstore.js'
import { strings, XS } from '../../../src/transport/xen/xenstore-wire.js'
import { daemon, reply } from './daemon.js'

/** A host's xenstore as dom0 has it, without what it keeps from others: the real one is asked in the rig. */
async function host(...domids: number[]) {
  const alive = new Set(domids)
  const keys = new Map<string, string>()
  for (const domid of alive) {
    keys.set(`/local/domain/${domid}/name`, `vm-${domid}`)
    if (domid !== 0) keys.set(`/local/domain/${domid}/vm`, `/vm/${uuid(domid)}`)
  }
  const permissions = new Map<string, string>()
  const store: XenStore = await daemon((message, socket) => {
    const [path = '', value = ''] = Buffer.from(message.body).toString().split('\0')
    const ok = (body: Uint8Array = strings('OK')) => reply(socket, message, body)
    const none = () => reply(socket, message, strings('ENOENT'), XS.ERROR)
    const below = [...keys.keys()].filter((key) => key.startsWith(`${path}/`))
    switch (message.type) {
      case XS.TRANSACTION_START:
        return ok(strings('7'))
      case XS.READ:
        return keys.has(path) ? ok(Buffer.from(keys.get(path) as string)) : none()
      case XS.WRITE:
        keys.set(path, value)
        return ok()
      case XS.RM:
        for (const key of [path, ...below]) keys.delete(key)
        return ok()
      case XS.DIRECTORY:
        if (below.length === 0) return none()
        return ok(strings(...new Set(below.map((key) => key.slice(path.length + 1).split('/')[0] as string))))
      case XS.SET_PERMS:
        permissions.set(path, Buffer.from(message.body).toString().split('\0').slice(1, -1).join(' '))
        return ok()
      case XS.IS_DOMAIN_INTRODUCED:
        return ok(strings(alive.has(Number(path)) ? 'T' : 'F'))
      default:
        return ok()
    }
  })
  const announced = () => Object.fromEntries([...keys].filter(([key]) => key.includes('/cloudapp/')).sort())
  return { store, alive, permissions, announced }
}

const uuid = (domid: number) => `00000000-0000-4000-8000-${String(domid).padStart(12, '0')}`
const at = (domid: number, key: string) => `/local/domain/${domid}/cloudapp/${key}`
const DOM0 = '00000000-0000-0000-0000-000000000000'

describe('introductions', () => {
  it('tell the client its service and each who the other is, for nobody else to read or write', async () => {
    const { store, permissions, announced } = await host(0, 3, 4)
    await introduce(store, { service: 'ids', server: 3, client: 4 })
    await introduce(store, { service: 'broker', server: 0, client: 3 })
    expect(announced()).toEqual({
      [at(0, 'peers/3')]: uuid(3),
      [at(3, 'peers/0')]: DOM0,
      [at(3, 'peers/4')]: uuid(4),
      [at(3, 'services/broker')]: '0/broker',
      [at(4, 'peers/3')]: uuid(3),
      [at(4, 'services/ids')]: '3/ids',
    })
    expect(permissions.get('/local/domain/3/cloudapp')).toBe('n0 r3')
    expect(permissions.get('/local/domain/4/cloudapp')).toBe('n0 r4')
  })

  it('follow a service to the domain that serves it now, and forget domains that have ended', async () => {
    const { store, alive, announced } = await host(0, 3, 4, 5)
    await introduce(store, { service: 'ids', server: 3, client: 4 })
    await introduce(store, { service: 'broker', server: 0, client: 3 })
    alive.delete(3)
    await introduce(store, { service: 'ids', server: 5, client: 4 })
    const left = announced()
    expect(left[at(4, 'services/ids')]).toBe('5/ids')
    expect(left).not.toHaveProperty(at(4, 'peers/3'))
    // The number 3 is given out again one day, to somebody else's VM.
    expect(left).not.toHaveProperty(at(0, 'peers/3'))
  })

  it('part the client from who served it before, also if that domain lives on', async () => {
    const { store, announced } = await host(0, 3, 4, 5)
    await introduce(store, { service: 'ids', server: 3, client: 4 })
    await introduce(store, { service: 'ids', server: 5, client: 4 })
    expect(Object.keys(announced())).toEqual([at(4, 'peers/5'), at(4, 'services/ids'), at(5, 'peers/4')])
  })

  it('are taken back one by one: who the other is stays known while a service is left', async () => {
    const { store, announced } = await host(0, 3, 4)
    await introduce(store, { service: 'ids', server: 3, client: 4 })
    await introduce(store, { service: 'guard', server: 3, client: 4 })
    await withdraw(store, { service: 'ids', server: 3, client: 4 })
    expect(Object.keys(announced())).toEqual([at(3, 'peers/4'), at(4, 'peers/3'), at(4, 'services/guard')])
    // Another domain's service of this name is not theirs to take back.
    await withdraw(store, { service: 'guard', server: 0, client: 4 })
    expect(Object.keys(announced())).toHaveLength(3)
    await withdraw(store, { service: 'guard', server: 3, client: 4 })
    expect(announced()).toEqual({})
  })

  it('are refused for a domain that is not there, for itself, and under a name that is none', async () => {
    const { store, announced } = await host(0, 3)
    const refused = (introduction: object) =>
      introduce(store, { service: 'ids', server: 3, client: 0, ...introduction }).catch(({ code }) => code)
    expect(await refused({ client: 9 })).toBe('ERR_CLOUDAPP_NOT_FOUND')
    expect(await refused({ client: 3 })).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
    expect(await refused({ service: '../x' })).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
    expect(announced()).toEqual({})
  })

  it('name a domain by number, name or uuid', async () => {
    const { store } = await host(0, 3, 4)
    expect(await Promise.all(['4', 'vm-4', uuid(4).toUpperCase()].map((text) => findDomain(store, text)))).toEqual([
      4, 4, 4,
    ])
    await expect(findDomain(store, 'web')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
  })
})
