import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { ResumeGuard } from '../../../src/vmi/sources/qemu-guard.js'
import { entryOf } from '../../../src/vmi/sources/qemu-ledger.js'

let folder: string
let server: Server
beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-guard-'))
  vi.stubEnv('RUNTIME_DIRECTORY', folder)
})
afterEach(() => {
  server.close()
  vi.unstubAllEnvs()
  rmSync(folder, { recursive: true })
})

/** A QEMU whose VM is paused, as far as the guard talks to it; a real one refuses no `cont` on demand. Gives what it was asked. */
async function paused(cont: object): Promise<{ socket: string; asked: Promise<string[]> }> {
  const socket = path.join(folder, 'qmp')
  const asked: string[] = []
  const answers: Record<string, object> = { 'query-status': { return: { status: 'paused' } }, cont }
  const serve = (peer: Socket): void => {
    peer.write('{"QMP":{}}\n')
    peer.on('data', (bytes) => {
      const { execute, id } = JSON.parse(bytes.toString())
      asked.push(execute)
      peer.write(`${JSON.stringify({ ...(answers[execute] ?? { return: {} }), id })}\n`)
    })
  }
  const ended = new Promise<string[]>((resolve) => {
    server = createServer((peer) => {
      serve(peer)
      peer.on('close', () => resolve(asked))
    })
  })
  await new Promise<void>((resolve) => server.listen(socket, resolve))
  return { socket, asked: ended }
}

describe('the guard of a pause', () => {
  it.each([
    ['erases its entry once the VM runs', { return: {} }, false],
    ['leaves its entry to who comes next where QEMU refuses', { error: { class: 'GenericError', desc: 'no' } }, true],
  ])('%s', async (_, cont, stays) => {
    const { socket, asked } = await paused(cont)
    const guard = await ResumeGuard.start(socket)
    await guard.arm()
    const entry = entryOf(socket) as string
    expect(existsSync(entry)).toBe(true)
    // To the guard this is our death: the pipe ends while it is armed.
    guard.close()
    expect(await asked).toEqual(['qmp_capabilities', 'query-status', 'cont'])
    expect(existsSync(entry)).toBe(stays)
  })
})
