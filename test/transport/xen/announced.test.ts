import { describe, expect, it, vi } from 'vitest'
import { discover } from '../../../src/service/discover.js'
import { readOwned } from '../../../src/transport/xen/neighbours.js'
import { announced } from '../../../src/transport/xen/service.js'
import { XenStore } from '../../../src/transport/xen/xenstore.js'
import { strings, XS } from '../../../src/transport/xen/xenstore-wire.js'
import { daemon, reply } from './daemon.js'

// As in a domain of Xen: that it is one is known by a file.
vi.mock('node:fs', async (original) => {
  const fs = await original<typeof import('node:fs')>()
  return { ...fs, existsSync: (path: string) => path === '/dev/xen/xenbus' || fs.existsSync(path) }
})

/** The xenstore of domain 5, with one key, whose permissions are these: the owner first, in the letters of xenstore. */
function store(value: string | undefined, ...permissions: string[]) {
  return daemon((message, socket) => {
    switch (message.type) {
      case XS.TRANSACTION_START:
        return reply(socket, message, strings('7'))
      case XS.READ:
        if (Buffer.from(message.body).toString() === 'domid\0') return reply(socket, message, Buffer.from('5'))
        if (value === undefined) return reply(socket, message, strings('ENOENT'), XS.ERROR)
        return reply(socket, message, Buffer.from(value))
      case XS.GET_PERMS:
        return reply(socket, message, strings(...permissions))
      default:
        return reply(socket, message, strings('OK'))
    }
  })
}

const PATH = 'cloudapp/services/ids'

describe('a key of xenstore', () => {
  it.each([[['n0']], [['r0']], [['n0', 'r5']], [['n0', 'r5', 'n6', 'b0']]])(
    'is believed where only dom0 can write it: %j',
    async (permissions) => {
      expect(await readOwned(await store('3/ids', ...permissions), PATH)).toBe('3/ids')
    },
  )

  it.each([
    ['owned by another domain', ['n5']],
    ['owned by another domain that lets dom0 write', ['n5', 'b0']],
    ['that another domain may write', ['n0', 'w5']],
    ['that another domain may read and write', ['n0', 'r4', 'b5']],
    ['that all domains may write', ['w0']],
    ['that all domains may read and write', ['b0', 'r5']],
    ['of nobody', []],
  ])('%s is refused', async (_, permissions) => {
    const refused = readOwned(await store('3/ids', ...permissions), PATH)
    await expect(refused).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_DENIED', details: { path: PATH } })
  })
})

describe('a service', () => {
  it('is announced by dom0 only', async () => {
    expect(await announced(await store('3/ids', 'n0', 'r5'), 'ids')).toEqual({ domid: 3, name: 'ids' })
    const forged = announced(await store('3/ids', 'n0', 'b5'), 'ids')
    await expect(forged).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_DENIED' })
    await expect(announced(await store(undefined), 'ids')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
    for (const value of ['', '3', 'ids', '3/IDS', '3/ids/x', '-1/ids', '3/-']) {
      const malformed = announced(await store(value, 'n0'), 'ids')
      await expect(malformed).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    }
  })
})

describe('discover', () => {
  it('finds in xenstore what no file announces, and does not believe what others than dom0 may have written', async () => {
    vi.stubEnv('CLOUDAPP_DISCOVERY', '/none')
    const found = async (...of: Parameters<typeof store>) => {
      // The one place of xenstore's socket is the host's own.
      const open = vi.spyOn(XenStore, 'open').mockResolvedValueOnce(await store(...of))
      return discover('ids').finally(() => open.mockRestore())
    }
    expect(await found('3/ids', 'n0', 'r5')).toEqual({ name: 'ids', endpoint: 'vchan:ids' })
    await expect(found(undefined)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
    await expect(found('3/ids', 'n5')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_DENIED' })
    vi.unstubAllEnvs()
  })
})
