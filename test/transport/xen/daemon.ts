import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach } from 'vitest'
import { XenStore } from '../../../src/transport/xen/xenstore.js'
import { encodeMessage, MessageReader, type StoreMessage } from '../../../src/transport/xen/xenstore-wire.js'

const folder = mkdtempSync(join(tmpdir(), 'cloudapp-xenstore-'))
let servers: Server[] = []
let serial = 0
afterEach(() => {
  for (const server of servers) server.close()
  servers = []
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** A daemon that answers as the test says: the real one, in the rig, never lies. */
export async function daemon(answer: (message: StoreMessage, socket: Socket) => void): Promise<XenStore> {
  const path = join(folder, `s${serial++}`)
  const server = createServer((socket) => {
    const reader = new MessageReader()
    socket.on('data', (bytes) => {
      for (const message of reader.push(bytes)) answer(message, socket)
    })
    socket.on('error', () => {})
  })
  servers.push(server)
  await new Promise<void>((done) => server.listen(path, done))
  return XenStore.open({ path })
}

export const reply = (socket: Socket, to: StoreMessage, body: Uint8Array, type = to.type) =>
  socket.write(encodeMessage({ type, request: to.request, transaction: to.transaction, body }))
