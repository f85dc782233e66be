import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it, vi } from 'vitest'
import type { Channel } from '../../../src/transport/channel.js'
import { deferred } from '../../../src/transport/deferred.js'
import { Link, MOST_STREAMS } from '../../../src/transport/link.js'
import { memoryChannelPair } from '../../../src/transport/memory.js'
import { askRelay, serveRelay } from '../../../src/transport/xen/link-relay.js'
import { channelConformance } from '../../conformance/channel.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const PEER = { kind: 'vchan', domid: 3, uuid: undefined, local: { domid: 4, uuid: undefined } } as const
const scratch = mkdtempSync(join(tmpdir(), 'cloudapp-relay-'))
afterAll(() => rmSync(scratch, { recursive: true }))
let serial = 0

/** A process that has the vchan, here this one. */
async function owner(onStream: (stream: Channel) => void = () => {}) {
  const folder = join(scratch, `${serial++}`)
  const [near, far] = memoryChannelPair()
  const server = new Link(far, { role: 'server', onStream })
  const client = new Link(near, { role: 'client' })
  const relay = await serveRelay('3-ids', client, folder)
  const close = async () => {
    await relay?.close()
    await Promise.all([client.close(), server.close()])
  }
  return { folder, client, relay, close }
}

describe('a stream that another process passes on', () => {
  channelConformance(async () => {
    const taken = deferred<Channel>()
    const { folder } = await owner(taken.resolve)
    const stream = (await askRelay('3-ids', PEER, folder)) as Channel
    return [stream, await taken.promise]
  })

  it('has the peer of the vchan, and is for this user only', async () => {
    const { folder, close } = await owner()
    const stream = await askRelay('3-ids', PEER, folder)
    expect(stream?.peer).toBe(PEER)
    expect(statSync(folder).mode & 0o777).toBe(0o700)
    expect(statSync(join(folder, '3-ids.sock')).mode & 0o777).toBe(0o600)
    await close()
  })

  it('ends with the link it is in, and its socket with it', async () => {
    const { folder, client, close } = await owner()
    const stream = (await askRelay('3-ids', PEER, folder)) as Channel
    await client.close()
    expect(await stream.read()).toBeUndefined()
    await close()
    expect(await askRelay('3-ids', PEER, folder)).toBeUndefined()
  })

  it('is refused with a reason when there are too many', async () => {
    const { folder, client, close } = await owner()
    for (let i = 0; i < MOST_STREAMS; i++) client.open()
    await expect(askRelay('3-ids', PEER, folder)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_LIMIT' })
    await close()
  })

  it('is not to be had where nobody has the vchan, or who has it says nothing', async () => {
    expect(await askRelay('3-ids', PEER, join(scratch, 'none'))).toBeUndefined()
    const path = join(scratch, 'mute.sock')
    const mute = createServer()
    await new Promise<void>((resolve) => mute.listen(path, resolve))
    expect(await askRelay('mute', PEER, scratch)).toBeUndefined()
    mute.close()
  })

  it('is passed on by one process only', async () => {
    const { folder, client, close } = await owner()
    expect(await serveRelay('3-ids', client, folder)).toBeUndefined()
    await close()
  })
})
