// XenStore, GrantTable and EventChannel between two domains: node xen-parts.mjs give|take DOMID PATH
import { CloudAppError } from '@cloudapp/sdk'
import { EventChannel, GrantTable, XenStore } from '@cloudapp/sdk/transport'

const [role = '', peer = '', path = ''] = process.argv.slice(2)
const domid = Number(peer)

function check(what: string, fine: boolean): void {
  if (fine) return
  console.log(`failed: ${what}`)
  process.exit(1)
}

const code = (work: () => unknown): Promise<string> =>
  Promise.resolve()
    .then(work)
    .then(
      () => 'nothing thrown',
      (error: unknown) => (CloudAppError.is(error) ? error.code : String(error)),
    )

async function waitFor(store: XenStore, key: string): Promise<string> {
  for await (const _ of store.watch(key)) {
    const value = await store.read(key).catch(() => undefined)
    if (value !== undefined) return value
  }
  throw new Error('the watch ended')
}

/** What only the peer may read. */
async function put(store: XenStore, key: string, value: string): Promise<void> {
  const own = Number(await store.read('domid'))
  await store.write(key, value)
  await store.setPermissions(key, [
    { domid: own, access: 'none' },
    { domid, access: 'read' },
  ])
}

async function give(store: XenStore): Promise<void> {
  // The store itself.
  await store.write(`${path}/a/b`, 'one')
  check('read', (await store.read(`${path}/a/b`)) === 'one')
  check('list', (await store.list(path))?.join() === 'a')
  check(
    'no such key',
    (await store.read(`${path}/none`)) === undefined && (await store.list(`${path}/none`)) === undefined,
  )
  await store.remove(`${path}/a`)
  await store.remove(`${path}/a`)
  await store.remove(`${path}/a/b/c`)
  check('remove', (await store.read(`${path}/a/b`)) === undefined)
  check('forbidden', (await code(() => store.write('/local/domain/0/name', 'x'))) === 'ERR_CLOUDAPP_DENIED')
  check('malformed', (await code(() => store.read('a//b'))) === 'ERR_CLOUDAPP_INVALID_ARGUMENT')
  check('too long', (await code(() => store.write(path, 'x'.repeat(5000)))) === 'ERR_CLOUDAPP_LIMIT')
  check('not for us', (await code(() => store.isDomainIntroduced(domid))) === 'ERR_CLOUDAPP_DENIED')
  // A transaction that meets a change runs again; one that throws changes nothing.
  let runs = 0
  await store.transaction(async (keys) => {
    runs++
    const before = (await keys.read(`${path}/count`)) ?? '0'
    if (runs === 1) await store.write(`${path}/count`, '5')
    await keys.write(`${path}/count`, `${Number(before) + 1}`)
  })
  check('transaction', runs === 2 && (await store.read(`${path}/count`)) === '6')
  await code(() =>
    store.transaction(async (keys) => {
      await keys.write(`${path}/count`, '9')
      throw new Error('no')
    }),
  )
  check('transaction undone', (await store.read(`${path}/count`)) === '6')
  // Names that do not fit one message; nor, in Xen's own xenstored, what it lets a guest keep in one folder.
  const many = Array.from({ length: 150 }, (_, i) => `name-of-a-key-that-is-rather-long-${i}`)
  const made = await code(() =>
    store.transaction(async (keys) => {
      for (const name of many) await keys.mkdir(`${path}/many/${name}`)
    }),
  )
  const listed = (await store.list(`${path}/many`))?.sort().join()
  check('a long list', made === 'ERR_CLOUDAPP_LIMIT' || listed === [...many].sort().join())
  await store.remove(`${path}/many`)

  // Pages and events.
  await using pages = GrantTable.share({ domid, pages: 3 })
  await using readOnly = GrantTable.share({ domid, pages: 1, writable: false })
  await using events = EventChannel.allocate(domid)
  pages.write(4090, Buffer.from('over the edge'))
  readOnly.write(0, Buffer.from('look only'))
  check('outside', (await code(() => pages.read(3 * 4096, 1))) === 'ERR_CLOUDAPP_INVALID_ARGUMENT')
  check(
    'too many',
    (await code(() => Promise.all([1, 2].map(() => GrantTable.share({ domid, pages: 600 }))))) === 'ERR_CLOUDAPP_LIMIT',
  )
  await put(store, `${path}/offer`, JSON.stringify({ refs: pages.refs, readOnly: readOnly.refs, port: events.port }))
  await events.wait({ signal: AbortSignal.timeout(120_000) })
  check('answer', Buffer.from(pages.read(8192, 6)).toString() === 'answer')
  pages.write(100, new Uint8Array([7]))
  events.notify()
  // The peer closes its mapping: the kernel clears the byte and tells.
  await events.wait({ signal: AbortSignal.timeout(120_000) })
  check('unmap notify', pages.read(100, 1)[0] === 0)
  check('aborted wait', (await code(() => events.wait({ signal: AbortSignal.timeout(50) }))) === 'ERR_CLOUDAPP_ABORTED')
  const waiting = code(() => events.wait())
  await events.close()
  check('closed wait', (await waiting) === 'ERR_CLOUDAPP_CLOSED' && events.closed.aborted)
  await events.close()
  await pages.close()
  check('closed pages', (await code(() => pages.read(0, 1))) === 'ERR_CLOUDAPP_CLOSED')
}

async function take(store: XenStore): Promise<void> {
  const offer = JSON.parse(await waitFor(store, `${path}/offer`)) as {
    refs: number[]
    readOnly: number[]
    port: number
  }
  check('foreign key', (await code(() => store.write(`${path}/offer`, 'x'))) === 'ERR_CLOUDAPP_DENIED')
  check('foreign secret', (await code(() => store.read(`${path}/count`))) === 'ERR_CLOUDAPP_DENIED')
  await using events = EventChannel.bind(domid, offer.port)
  const pages = GrantTable.map({ domid, refs: offer.refs })
  await using readOnly = GrantTable.map({ domid, refs: offer.readOnly, writable: false })
  check('bytes', Buffer.from(pages.read(4090, 13)).toString() === 'over the edge')
  check('read only', Buffer.from(readOnly.read(0, 9)).toString() === 'look only')
  check('no write', (await code(() => readOnly.write(0, new Uint8Array(1)))) === 'ERR_CLOUDAPP_UNSUPPORTED')
  check('no map', (await code(() => GrantTable.map({ domid, refs: offer.readOnly }))) === 'ERR_CLOUDAPP_SOURCE')
  check('wrong reference', (await code(() => GrantTable.map({ domid, refs: [4_000_000] }))) === 'ERR_CLOUDAPP_SOURCE')
  check('wrong port', (await code(() => EventChannel.bind(domid, 4000))) === 'ERR_CLOUDAPP_SOURCE')
  pages.notifyOnUnmap(100, events)
  pages.write(8192, Buffer.from('answer'))
  events.notify()
  // Xen itself signals a port that is bound: the first event may be no word of the peer's.
  const limit = AbortSignal.timeout(120_000)
  while (pages.read(100, 1)[0] !== 7) await events.wait({ signal: limit })
  await pages.close()
}

await using store = await XenStore.open()
await (role === 'give' ? give(store) : take(store))
console.log('all fine')
