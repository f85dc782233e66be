import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { BrokerState } from '../../src/broker/state.js'
import { encodeReads } from '../../src/broker/wire/read.js'
import { KeyPair } from '../../src/capabilities/keys.js'
import type { TokenText } from '../../src/capabilities/token.js'
import { tokenFromText } from '../../src/capabilities/token.js'
import type { CloudAppError } from '../../src/errors.js'
import { encodeFrame, FrameReader } from '../../src/transport/frames.js'
import { connectUnix } from '../../src/transport/unix.js'
import { Child } from './child.js'
import type { FakeVm } from './fake-vm.js'
import { Host } from './host.js'
import { RawHolder } from './raw-holder.js'
import { SmallDisk } from './small-disk.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

let host: Host
let token: TokenText
const MIB = 1024 * 1024
const one = [{ space: 0n, at: 0x1000n, length: 4 }]
beforeAll(async () => {
  host = await Host.start()
  const owner = await host.connectOwner()
  const rights = ['memory.read', 'memory.write'] as const
  token = (await owner.delegate({ vm: 'web-1', to: host.holder.publicKey, rights, expires: '10m' })).token
})
afterAll(() => host[Symbol.asyncDispose]())

async function reader() {
  return (await host.connect()).redeem<'memory.read'>(token)
}

describe('a session that', () => {
  it('floods: it is refused past a queue, and others are served meanwhile', async () => {
    const vm = await reader()
    const flooder = await RawHolder.open(host)
    const stub = await flooder.redeem(tokenFromText(token))
    const message = encodeReads([{ space: 0n, at: 0n, length: 256 * 1024 }])
    let answered = 0
    const codes = new Set<string>()
    const flood = Array.from({ length: 400 }, () =>
      flooder.session.settle(stub.read(message, 0)).then(
        () => answered++,
        (error: CloudAppError) => codes.add(error.code),
      ),
    )
    let served = 0
    while (answered + codes.size === 0 || served < 50) {
      await vm.memory.read(one)
      served++
    }
    // Fifty reads were answered before the flood was.
    expect(answered).toBeLessThan(400)
    await flooder.close()
    await Promise.all(flood)
    await vm.memory.read(one)
  })

  it('does not read its answers: it is held back, and others are served', async () => {
    const vm = await reader()
    const slow = await RawHolder.open(host)
    const proof = await slow.prove(tokenFromText(token))
    const stub = await slow.present(tokenFromText(token), proof)
    const message = encodeReads([{ space: 0n, at: 0n, length: 4 * 1024 * 1024 }])
    // The socket is not read while this runs: answers pile up at the broker as far as it lets them.
    const raw = slow.session.channel as unknown as { read: () => Promise<unknown> }
    const held = raw.read
    raw.read = () => new Promise(() => undefined)
    const before = process.memoryUsage().arrayBuffers
    // In turns of their own, so that each call is followed by the asking for its answer: only what is sent is held back.
    for (let i = 0; i < 60; i++) {
      void slow.session.settle(stub.read(message, 0)).catch(() => undefined)
      await new Promise((resolve) => setImmediate(resolve))
    }
    for (let i = 0; i < 200; i++) await vm.memory.read(one)
    // Sixty answers would be 240 MiB.
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(100 * MIB)
    raw.read = held
    await slow.close()
  })

  it('does not ask for its answers: few are kept for it, and the rest come when it does', async () => {
    const raw = await RawHolder.open(host)
    const stub = await raw.redeem(tokenFromText(token))
    const message = encodeReads([{ space: 0n, at: 0n, length: 3 * MIB }])
    const before = process.memoryUsage().arrayBuffers
    // capnweb asks for an answer when somebody waits for it.
    const calls = Array.from({ length: 60 }, () => stub.read(message, 0))
    const vm = await reader()
    for (let i = 0; i < 200; i++) await vm.memory.read(one)
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(100 * MIB)
    // Small ones of the same delegate were read; nothing waits once it asks.
    const answers = await Promise.all(calls.map((call) => raw.session.settle(call)))
    expect(answers).toHaveLength(60)
    await raw.close()
  })

  it('keeps answers that it has read: no more are kept for it than it may have at once', async () => {
    const channel = await connectUnix({ path: host.socket })
    const write = channel.write.bind(channel)
    // Four bytes of length, an array of three, a text of seven: a release, which tells the broker to forget an answer.
    const release = Buffer.from('\x83\x67release', 'latin1')
    channel.write = (bytes) => Buffer.from(bytes).subarray(4, 13).equals(release) || write(bytes)
    const raw = await RawHolder.open(host, host.holder, channel)
    const stub = await raw.redeem(tokenFromText(token))
    const message = encodeReads([{ space: 0n, at: 0n, length: 3 * MIB }])
    const before = process.memoryUsage().arrayBuffers
    let answered = 0
    const calls = Array.from({ length: 60 }, () => raw.session.settle(stub.read(message, 0)).then(() => answered++))
    const all = Promise.allSettled(calls)
    const vm = await reader()
    for (let i = 0; i < 300; i++) await vm.memory.read(one)
    expect(answered).toBeGreaterThan(0)
    expect(answered).toBeLessThan(40)
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(150 * MIB)
    await raw.close()
    await all
    await vm.memory.read([{ space: 0n, at: 0n, length: 8 * MIB }])
  })

  it('does not read its answers, on many connections: they are held to a bound together', async () => {
    const before = process.memoryUsage().arrayBuffers
    const message = encodeReads([{ space: 0n, at: 0n, length: 3 * MIB }])
    const slow: RawHolder[] = []
    for (let i = 0; i < 8; i++) {
      const raw = await RawHolder.open(host)
      const stub = await raw.redeem(tokenFromText(token))
      const channel = raw.session.channel as unknown as { read: () => Promise<unknown> }
      channel.read = () => new Promise(() => undefined)
      for (let n = 0; n < 20; n++) void raw.session.settle(stub.read(message, 0)).catch(() => undefined)
      slow.push(raw)
    }
    // Another delegate's large answers are not kept waiting; their own are until they end.
    const other = KeyPair.generate()
    const owner = await host.connectOwner()
    const rights = ['memory.read'] as const
    const granted = await owner.delegate({ vm: 'web-1', to: other.publicKey, rights, expires: '10m' })
    const large = [{ space: 0n, at: 0n, length: 8 * MIB }]
    const theirs = await (await host.connect(other)).redeem<'memory.read'>(granted.token)
    for (let i = 0; i < 5; i++) await theirs.memory.read(large)
    // A hundred and sixty answers would be 480 MiB.
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(150 * MIB)
    const vm = await reader()
    let read = false
    const answer = vm.memory.read(large).then(() => {
      read = true
    })
    await vm.memory.read(one)
    expect(read).toBe(false)
    await Promise.all(slow.map((raw) => raw.close()))
    await answer
  })

  it('does not read its answers: it can not go on sending either', async () => {
    const channel = await connectUnix({ path: host.socket })
    const raw = await RawHolder.open(host, host.holder, channel)
    const stub = await raw.redeem(tokenFromText(token))
    const read = channel.read.bind(channel)
    channel.read = () => new Promise(() => undefined)
    const message = encodeReads([{ space: 0n, at: 0n, length: 4 * 1024 * 1024 }])
    for (let i = 0; i < 64; i++) void raw.session.settle(stub.read(message, 0)).catch(() => undefined)
    // More calls than are read: what is written stays in this process, and the channel says so.
    const padding = new Uint8Array(512 * 1024)
    let written = 0
    for (let held = false; !held; ) {
      if (written > 128 * 1024 * 1024) throw new Error('the broker took everything')
      void raw.session
        .settle((stub as unknown as { nope(x: unknown): Promise<void> }).nope(padding))
        .catch(() => undefined)
      written += padding.length
      held = await Promise.race([channel.drained().then(() => false), sleep(500).then(() => true)])
    }
    expect(channel.queued).toBeGreaterThan(0)
    channel.read = read
    await raw.close()
    expect(await (await reader()).memory.read(one)).toHaveLength(1)
  })

  it('sends more than a reader may, who writes nothing', async () => {
    const owner = await host.connectOwner()
    const rights = ['memory.read'] as const
    const granted = await owner.delegate({ vm: 'web-1', to: host.holder.publicKey, rights, expires: '10m' })
    const raw = await RawHolder.open(host)
    const stub = await raw.redeem(tokenFromText(granted.token))
    const huge = raw.session.settle(stub.read(new Uint8Array(5 * 1024 * 1024), 0))
    await expect(huge).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROTOCOL' })
  })

  it('sends more than a stranger may before it has proved anything', async () => {
    const channel = await connectUnix({ path: host.socket })
    channel.write(encodeFrame(['push', ['pipeline', 0, ['redeem'], [['bytes', new Uint8Array(100_000)]]]]))
    for (;;) {
      const chunk = await channel.read().catch(() => undefined)
      if (chunk === undefined) break
    }
    await channel.close()
    expect(await (await reader()).memory.read(one)).toHaveLength(1)
  })

  it('sends a message of many values: it is cut off, not kept busy with', async () => {
    const raw = await RawHolder.open(host)
    const stub = await raw.redeem(tokenFromText(token))
    const many = stub.read(Array.from({ length: 5000 }, () => 0) as unknown as Uint8Array, 0)
    await expect(raw.session.settle(many)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_PROTOCOL',
      message: expect.stringContaining('4096 values'),
    })
  })

  it('is one of too many of one user: it is turned away, and there is room again afterwards', async () => {
    const many: RawHolder[] = []
    const turnedAway = async () => {
      const raw = await RawHolder.open(host)
      many.push(raw)
      const hello = (raw.session.remote as { hello(): Promise<unknown> }).hello()
      return raw.session.settle(hello).then(
        () => false,
        () => true,
      )
    }
    let taken = 0
    while (!(await turnedAway())) taken++
    expect(taken).toBeGreaterThan(200)
    expect(taken).toBeLessThanOrEqual(256)
    await Promise.all(many.map((raw) => raw.close()))
    while (host.broker.stats().sessions > 100) await new Promise((resolve) => setTimeout(resolve, 10))
    expect(await (await reader()).memory.read(one)).toHaveLength(1)
  })

  it('sends noise: it is cut off, and others are served', async () => {
    for (const noise of [new Uint8Array(64).fill(0xff), new Uint8Array([0, 0, 0, 1, 0xff]), new Uint8Array(200)]) {
      const channel = await connectUnix({ path: host.socket })
      channel.write(noise)
      while ((await channel.read().catch(() => undefined)) !== undefined) {}
      await channel.close()
    }
    expect(await (await reader()).memory.read(one)).toHaveLength(1)
  })

  it('asks for what is not there, or is inside: each is refused', async () => {
    const channel = await connectUnix({ path: host.socket })
    const paths = [
      ['nope'],
      ['constructor'],
      ['__proto__'],
      ['toString'],
      ['hello', 'constructor'],
      ['redeem', 'call'],
      [],
    ]
    paths.forEach((path, i) => {
      channel.write(encodeFrame(['push', ['pipeline', 0, path, []]]))
      channel.write(encodeFrame(['pull', i + 1]))
    })
    const frames = new FrameReader()
    const answers: unknown[] = []
    while (answers.length < paths.length) {
      frames.push((await channel.read()) ?? new Uint8Array())
      for (let frame = frames.next(); frame !== undefined; frame = frames.next()) answers.push(frame.value)
    }
    for (const answer of answers)
      expect(answer).toMatchObject([
        'reject',
        expect.any(Number),
        ['error', 'CloudAppError', expect.any(String), null, { code: expect.any(String) }],
      ])
    await channel.close()
    expect(await (await reader()).memory.read(one)).toHaveLength(1)
  })
})

describe.runIf(process.getuid?.() === 0)('a full disk', () => {
  it('stops new operations, but no revocation', async () => {
    using disk = new SmallDisk(join(host.folder, 'small'))
    const small = await Host.start({}, join(disk.folder, 'state'))
    const owner = await small.connectOwner()
    const give = () =>
      owner.delegate({ vm: 'web-1', to: small.holder.publicKey, rights: ['memory.read'], expires: '10m' })
    const [granted, other] = [await give(), await give()]
    const connection = await small.connect()
    const vm = await connection.redeem<'memory.read'>(granted.token)
    const pauser = await owner.delegate({
      ...{ vm: 'web-1', to: small.holder.publicKey, rights: ['vm.pause'], expires: '10m' },
    })
    const scope = await (await connection.redeem<'vm.pause'>(pauser.token)).pause()
    // Another service domain, in a process of its own, that holds the VM paused too and will die.
    const dying = await Child.start('pause-child.ts', [small.socket, small.holder.exportPem(), pauser.token])
    expect(await dying.next()).toEqual({ paused: true })
    const fake = small.vms['fake:web'] as FakeVm
    expect(fake.pauses).toBe(2)
    disk.fill()
    // The log's last page has room for some records yet; a read is covered by its record for a second.
    const full = { code: 'ERR_CLOUDAPP_AUDIT' }
    const redeemAll = async () => {
      for (;;) await connection.redeem(other.token)
    }
    await expect(redeemAll()).rejects.toMatchObject(full)
    const readAll = async () => {
      for (;;) await vm.memory.read(one)
    }
    await expect(readAll()).rejects.toMatchObject(full)
    await scope.close()
    expect(fake.pauses).toBe(1)
    await dying.kill('SIGKILL')
    await vi.waitFor(() => expect(fake.pauses).toBe(0), { timeout: 30_000 })
    await granted.revoke()
    await other.revoke()
    // Of the one who is dead as well.
    await pauser.revoke()
    expect(vm.closed.reason).toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })
    // What a broker started now, on the disk that is still full, knows.
    const state = await BrokerState.open(join(disk.folder, 'state'))
    for (const { blockId } of [granted, other, pauser]) {
      expect(state.revokedAt(small.owner.publicKey, blockId)).toBeGreaterThan(0)
    }
    expect(state.revokedAt(KeyPair.generate().publicKey, granted.blockId)).toBeUndefined()
    await state.close()
    await small[Symbol.asyncDispose]()
  })
})
