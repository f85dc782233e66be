import { describe, expect, it, vi } from 'vitest'
import { parseEndpoint } from '../../../src/transport/endpoint.js'
import { XenStore } from '../../../src/transport/xen/xenstore.js'
import { encodeMessage, type StoreMessage, strings, XS } from '../../../src/transport/xen/xenstore-wire.js'
import { daemon, reply } from './daemon.js'

vi.setConfig({ testTimeout: 60_000 })

describe('XenStore', () => {
  it('matches answers that come in another order and in pieces', async () => {
    const held: StoreMessage[] = []
    const store = await daemon((message, socket) => {
      held.push(message)
      if (held.length < 3) return
      const all = held
        .toReversed()
        .map((one) => encodeMessage({ ...one, body: Buffer.from(`for ${Buffer.from(one.body)}`) }))
      for (const byte of Buffer.concat(all)) socket.write(new Uint8Array([byte]))
    })
    const read = (key: string) => store.read(key)
    expect(await Promise.all(['a', 'b', 'c'].map(read))).toEqual(['a', 'b', 'c'].map((key) => `for ${key}\0`))
    await store.close()
    await expect(store.read('a')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  it.each([
    ['a message past the limit', new Uint8Array(new Uint32Array([XS.READ, 1, 0, 4097]).buffer)],
    ['an answer nobody asked for', encodeMessage({ type: XS.READ, request: 99, transaction: 0, body: strings('x') })],
    ['an answer of another type', encodeMessage({ type: XS.WRITE, request: 1, transaction: 0, body: strings('OK') })],
  ])('closes at %s', async (_, bytes) => {
    const store = await daemon((_message, socket) => socket.write(bytes))
    const asked = store.read('key')
    const failed = expect(asked).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROTOCOL' })
    await vi.waitUntil(() => store.closed.aborted, { timeout: 20_000 })
    await failed
    expect(store.closed.reason).toMatchObject({ code: 'ERR_CLOUDAPP_PROTOCOL' })
  })

  it('runs a transaction again when it met a change, and not for ever', async () => {
    let begun = 0
    let conflicts = 2
    const store = await daemon((message, socket) => {
      if (message.type === XS.TRANSACTION_START) reply(socket, message, strings(`${++begun}`))
      else if (message.type !== XS.TRANSACTION_END) reply(socket, message, strings('OK'))
      else if (conflicts-- > 0) reply(socket, message, strings('EAGAIN'), XS.ERROR)
      else reply(socket, message, strings('OK'))
    })
    expect(await store.transaction(async (keys) => keys.write('a', '1').then(() => begun))).toBe(3)
    conflicts = Number.POSITIVE_INFINITY
    await expect(store.transaction(async () => {}, { attempts: 3 })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_LIMIT',
    })
    expect(begun).toBe(6)
    await store.close()
  })

  it('bounds what a watch holds, and counts what it lost', async () => {
    const store = await daemon((message, socket) => {
      reply(socket, message, strings('OK'))
      if (message.type !== XS.WATCH) return
      const token = Buffer.from(message.body).toString().split('\0')[1] as string
      for (let i = 0; i < 1000; i++) {
        const body = strings(`key/${i}`, token)
        socket.write(encodeMessage({ type: XS.WATCH_EVENT, request: 0, transaction: 0, body }))
      }
    })
    const events = store.watch('key')
    expect((await events.next()).value.path).toBe('key/0')
    // The answer to this comes after all of them.
    await store.mkdir('other')
    let seen = 1
    let lost = 0
    while (lost === 0) {
      const { value } = await events.next()
      if (value.lost > 0) expect(value.path).toBe('key')
      else seen++
      lost += value.lost
    }
    expect(seen + lost).toBe(1000)
    expect(seen).toBeLessThan(300)
    await events.return?.()
    await store.close()
  })

  it('ends a watch with its signal, and with the connection', async () => {
    const store = await daemon((message, socket) => reply(socket, message, strings('OK')))
    const stop = new AbortController()
    const first = store.watch('key', { signal: stop.signal })[Symbol.asyncIterator]().next()
    stop.abort()
    expect((await first).done).toBe(true)
    const second = store.watch('key').next()
    await store.mkdir('other')
    await store.close()
    await expect(second).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  it('refuses what could mean another key, and says where there is no xenstore', async () => {
    const store = await daemon(() => {})
    for (const path of ['', 'a//b', '/a/', 'a\0b', 'a b', '../x', `/${'x'.repeat(4000)}`]) {
      await expect(store.read(path)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    }
    await store.close()
    await expect(XenStore.open({ path: '/proc/none/socket' })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_UNSUPPORTED',
    })
  })
})

describe('endpoints of other domains', () => {
  it('are read, and refused where they are none', () => {
    expect(parseEndpoint('vchan:ids')).toEqual({ kind: 'vchan', name: 'ids' })
    expect(parseEndpoint('vchan:7/ids-2')).toEqual({ kind: 'vchan', name: 'ids-2', domid: 7 })
    for (const text of ['vchan:', 'vchan:7/', 'vchan:40000/ids', 'vchan:x/ids', 'vchan:IDS', 'vchan:7/a/b']) {
      expect(() => parseEndpoint(text)).toThrow(/vchan:NAME/)
    }
  })
})
