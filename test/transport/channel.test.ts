import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it, vi } from 'vitest'
import type { Channel } from '../../src/transport/channel.js'
import { deferred } from '../../src/transport/deferred.js'
import { memoryChannelPair } from '../../src/transport/memory.js'
import { connectUnix, listenUnix } from '../../src/transport/unix.js'
import { channelConformance } from '../conformance/channel.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const folder = mkdtempSync(join(tmpdir(), 'cloudapp-channel-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
let serial = 0
const freshPath = () => join(folder, `s${serial++}`)

describe('memory channel', () => {
  channelConformance(async () => memoryChannelPair())
})

describe('unix channel', () => {
  channelConformance(async () => {
    const path = freshPath()
    const taken = deferred<Channel>()
    const listener = await listenUnix({ path, onChannel: taken.resolve })
    const client = await connectUnix({ path })
    const server = await taken.promise
    await listener.close()
    return [client, server]
  })

  it('knows the peer from the kernel: another user and another process', async () => {
    const path = freshPath()
    const taken = deferred<Channel>()
    const listener = await listenUnix({ path, mode: 0o666, onChannel: taken.resolve })
    // The child says who it is; only what the kernel says must be believed.
    const script = `const s = require('node:net').connect(${JSON.stringify(path)}); s.on('error', () => process.exit(1)); s.resume(); s.on('end', () => process.exit())`
    const asRoot = process.getuid?.() === 0
    const ids = asRoot ? { uid: 12_345, gid: 23_456 } : {}
    if (asRoot) execFileSync('chmod', ['755', folder])
    const child = spawn(process.execPath, ['-e', script], { ...ids, cwd: '/', stdio: 'ignore' })
    const channel = await taken.promise
    expect(channel.peer).toEqual({
      kind: 'unix',
      pid: child.pid,
      uid: ids.uid ?? process.getuid?.(),
      gid: ids.gid ?? process.getgid?.(),
    })
    await channel.close()
    await once(child, 'exit')
    await listener.close()
  })

  it('binds two processes: a connection of another process has another binding', async () => {
    const path = freshPath()
    const taken: Channel[] = []
    let more = deferred<void>()
    const listener = await listenUnix({
      path,
      onChannel: (channel) => {
        taken.push(channel)
        more.resolve()
      },
    })
    const mine = await connectUnix({ path })
    await more.promise
    more = deferred<void>()
    const script = `const s = require('node:net').connect(${JSON.stringify(path)}); s.resume(); s.on('end', () => process.exit())`
    const child = spawn(process.execPath, ['-e', script], { stdio: 'ignore' })
    await more.promise
    const [first, relay] = taken as [Channel, Channel]
    expect(Buffer.from(first.binding).equals(mine.binding)).toBe(true)
    expect(Buffer.from(relay.binding).equals(mine.binding)).toBe(false)
    await Promise.all([mine.close(), first.close(), relay.close()])
    await once(child, 'exit')
    await listener.close()
  })

  it('makes the socket with its permissions, and takes it away on close', async () => {
    const path = freshPath()
    const listener = await listenUnix({ path, mode: 0o660, onChannel: () => {} })
    expect(statSync(path).mode & 0o777).toBe(0o660)
    await listener.close()
    expect(() => statSync(path)).toThrow(/ENOENT/)
    const other = await listenUnix({ path, onChannel: () => {} })
    expect(statSync(path).mode & 0o777).toBe(0o600)
    await other.close()
  })

  it('replaces the socket of a dead process, but neither a living one nor a file', async () => {
    const path = freshPath()
    const script = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`
    await once(spawn(process.execPath, ['-e', script]), 'exit')
    expect(statSync(path).isSocket()).toBe(true)
    const listener = await listenUnix({ path, onChannel: (channel) => channel.close() })
    await expect(listenUnix({ path, onChannel: () => {} })).rejects.toThrow(/Another process listens/)
    const client = await connectUnix({ path })
    expect(await client.read()).toBeUndefined()
    await client.close()
    await listener.close()
    const file = freshPath()
    writeFileSync(file, 'precious')
    await expect(listenUnix({ path: file, onChannel: () => {} })).rejects.toThrow(/not a socket/)
  })

  it('says what is wrong when it can not connect', async () => {
    await expect(connectUnix({ path: freshPath() })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
    await expect(connectUnix({ path: freshPath(), signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_ABORTED',
    })
    await expect(connectUnix({ paht: '/x' } as unknown as { path: string })).rejects.toThrow(/did you mean 'path'/)
    const long = join(folder, 'x'.repeat(120))
    await expect(listenUnix({ path: long, onChannel: () => {} })).rejects.toThrow(/too long/)
  })

  it('turns away connections past its limit', async () => {
    const path = freshPath()
    const taken: Channel[] = []
    const listener = await listenUnix({ path, maxChannels: 2, onChannel: (channel) => taken.push(channel) })
    const clients = [await connectUnix({ path }), await connectUnix({ path })]
    const extra = connect(path)
    extra.resume()
    extra.on('error', () => {})
    await once(extra, 'close')
    expect(taken.length).toBe(2)
    await Promise.all([...clients, ...taken].map((channel) => channel.close()))
    await listener.close()
  })
})
