import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { QMP_LIMITS, QmpClient } from '../../../src/vmi/sources/qmp.js'

const GREETING = '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}\n'

interface Request {
  readonly execute: string
  readonly id: number
}

/** A peer that is not QEMU: says what the test makes it say. */
let folder: string
let server: Server | undefined
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'cloudapp-qmp-'))
})
afterEach(() => {
  server?.close()
  rmSync(folder, { recursive: true })
})

async function peer(answer: (request: Request, socket: Socket) => void, greeting: string | Buffer = GREETING) {
  const path = join(folder, 'qmp')
  server = createServer((socket) => {
    socket.on('error', () => {})
    socket.write(greeting)
    socket.on('data', (bytes) => {
      for (const line of bytes.toString().split('\n').filter(Boolean)) {
        const request = JSON.parse(line) as Request
        if (request.execute === 'qmp_capabilities') socket.write(`{"return": {}, "id": ${request.id}}\n`)
        else answer(request, socket)
      }
    })
  })
  await new Promise<void>((resolve) => server?.listen(path, resolve))
  return path
}
const code = (value: string) => expect.objectContaining({ code: value })
const silent = (): void => {}

describe('the QMP client', () => {
  it('tells answers apart by their id, whatever their order, also in pieces', async () => {
    const waiting: Request[] = []
    const path = await peer((request, socket) => {
      waiting.push(request)
      if (waiting.length < 2) return
      const text = waiting
        .map(({ execute, id }) => `{"return": "${execute} é", "id": ${id}}\r\n`)
        .reverse()
        .join('')
      const bytes = Buffer.from(text)
      for (let at = 0; at < bytes.length; at += 7) socket.write(bytes.subarray(at, at + 7))
    })
    const client = await QmpClient.connect(path)
    expect(client.version).toBe('7.2.22')
    expect(await Promise.all([client.execute('one'), client.execute('two')])).toEqual(['one é', 'two é'])
    client.close()
    await expect(client.execute('three')).rejects.toEqual(code('ERR_CLOUDAPP_CLOSED'))
    expect(client.closed.aborted).toBe(true)
  })

  it('hands events to those who listen, and to nobody after', async () => {
    const path = await peer(({ id }, socket) => {
      socket.write('{"event": "STOP", "timestamp": {}}\n{"event": "RESET", "data": {"guest": true}}\n')
      socket.write(`{"return": {}, "id": ${id}}\n`)
    })
    const client = await QmpClient.connect(path)
    const heard: string[] = []
    const unhear = client.onEvent(({ event, data }) => heard.push(`${event} ${JSON.stringify(data)}`))
    await client.execute('stop')
    unhear()
    await client.execute('stop')
    expect(heard).toEqual(['STOP {}', 'RESET {"guest":true}'])
    client.close()
  })

  it("gives QEMU's own error with its class", async () => {
    const path = await peer(({ id }, socket) => {
      socket.write(`{"error": {"class": "CommandNotFound", "desc": "no such command"}, "id": ${id}}\n`)
    })
    const client = await QmpClient.connect(path)
    const error = await client.execute('nonsense').catch((caught: unknown) => caught)
    expect(error).toMatchObject({ code: 'ERR_CLOUDAPP_SOURCE', details: { class: 'CommandNotFound' } })
    client.close()
  })

  it('does not wait for ever, and an answer that comes late disturbs nobody', async () => {
    let late = (): void => {}
    const path = await peer(({ execute, id }, socket) => {
      if (execute === 'slow') late = () => socket.write(`{"return": "late", "id": ${id}}\n`)
      else {
        late()
        socket.write(`{"return": "good", "id": ${id}}\n`)
      }
    })
    const client = await QmpClient.connect(path)
    await expect(client.execute('slow', undefined, { timeoutMs: 20 })).rejects.toEqual(code('ERR_CLOUDAPP_TIMEOUT'))
    expect(await client.execute('next')).toBe('good')
    client.close()
  })

  it('ends what waits when its signal fires', async () => {
    const client = await QmpClient.connect(await peer(silent))
    const abort = new AbortController()
    const call = client.execute('slow', undefined, { signal: abort.signal })
    abort.abort()
    await expect(call).rejects.toEqual(code('ERR_CLOUDAPP_ABORTED'))
    client.close()
  })

  it.each([
    ['a line that is not JSON', 'garbage\n'],
    ['an array', '[1]\n'],
    ['a message of no kind', '{"return": 1}\n'],
  ])('fails what waits, and ends, on %s', async (_what, text) => {
    const client = await QmpClient.connect(await peer((_request, socket) => socket.write(text)))
    await expect(client.execute('x')).rejects.toEqual(code('ERR_CLOUDAPP_PROTOCOL'))
    expect(client.closed.reason).toEqual(code('ERR_CLOUDAPP_PROTOCOL'))
  })

  it('does not keep a line without end', async () => {
    const client = await QmpClient.connect(
      await peer((_request, socket) => socket.write(Buffer.alloc(QMP_LIMITS.line + 4096, 0x20))),
    )
    await expect(client.execute('x')).rejects.toEqual(code('ERR_CLOUDAPP_PROTOCOL'))
  })

  it('does not queue without end', async () => {
    const client = await QmpClient.connect(await peer(silent))
    const calls = Array.from({ length: QMP_LIMITS.pending }, () => client.execute('x'))
    await expect(client.execute('x')).rejects.toEqual(code('ERR_CLOUDAPP_LIMIT'))
    client.close()
    const ends = await Promise.allSettled(calls)
    expect(ends.every((end) => end.status === 'rejected')).toBe(true)
  })

  it('says when the peer goes', async () => {
    const client = await QmpClient.connect(await peer((_request, socket) => socket.destroy()))
    await expect(client.execute('x')).rejects.toEqual(code('ERR_CLOUDAPP_SOURCE'))
  })

  it('refuses a peer that does not greet, and one that is not there', async () => {
    const path = await peer(silent, '')
    await expect(QmpClient.connect(path, { timeoutMs: 20 })).rejects.toEqual(code('ERR_CLOUDAPP_TIMEOUT'))
    await expect(QmpClient.connect(join(folder, 'nothing'))).rejects.toEqual(code('ERR_CLOUDAPP_SOURCE'))
    const abort = AbortSignal.abort()
    await expect(QmpClient.connect(path, { signal: abort })).rejects.toEqual(code('ERR_CLOUDAPP_ABORTED'))
  })
})
