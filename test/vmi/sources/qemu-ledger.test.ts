import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { startOf } from '../../../src/vmi/sources/process.js'
import { entryOf, entryText, eraseEntry, orphans, writeEntry } from '../../../src/vmi/sources/qemu-ledger.js'

let folder: string
let socket: string
beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-ledger-'))
  vi.stubEnv('RUNTIME_DIRECTORY', `${folder}/unit:${folder}/other`)
  // In place of a socket: the ledger only asks whether it is still the same file.
  socket = path.join(folder, 'qmp')
  writeFileSync(socket, '')
})
afterEach(() => {
  vi.unstubAllEnvs()
  rmSync(folder, { recursive: true })
})

const entry = () => entryOf(socket) as string
/** The number of a process that has ended. */
const dead = () => Number(execFileSync('sh', ['-c', 'echo $$'], { encoding: 'utf8' }))
const note = async (pids: readonly number[]) => writeEntry(entry(), await entryText(socket, pids))

describe('the ledger of pauses', () => {
  it('lies where the user can write and nobody else can', async () => {
    const user = process.geteuid?.()
    expect(path.dirname(entry())).toBe(`${folder}/unit/pauses-${user}`)
    vi.stubEnv('RUNTIME_DIRECTORY', undefined)
    vi.stubEnv('XDG_RUNTIME_DIR', '/run/user/7')
    const geteuid = vi.spyOn(process, 'geteuid')
    expect(path.dirname(geteuid.mockReturnValue(0) && entry())).toBe('/run/cloudapp/pauses-0')
    expect(path.dirname(geteuid.mockReturnValue(7) && entry())).toBe('/run/user/7/cloudapp/pauses-7')
    vi.stubEnv('XDG_RUNTIME_DIR', undefined)
    expect(entryOf(socket)).toBeUndefined()
    expect(await orphans()).toEqual([])
    geteuid.mockRestore()
  })

  it('gives the pauses of which every holder is dead, of one socket or of all', async () => {
    await note([dead(), dead()])
    expect(await orphans()).toEqual([{ entry: entry(), socket }])
    expect(await orphans(socket)).toEqual([{ entry: entry(), socket }])
    expect(await orphans(`${socket}-other`)).toEqual([])
    await eraseEntry(entry())
    expect(await orphans()).toEqual([])
  })

  it('leaves alone what one holder lives for', async () => {
    await note([dead(), process.pid])
    expect(await orphans()).toEqual([])
    expect(existsSync(entry())).toBe(true)
  })

  it('takes no zombie, and no later process of the same number, for a holder', async () => {
    // The shell has become sleep, which waits for no child.
    const zombie = `${process.execPath} -e '' & echo $!; exec sleep 5`
    const { spawn } = await import('node:child_process')
    const parent = spawn('sh', ['-c', zombie], { stdio: ['ignore', 'pipe', 'ignore'] })
    const pid = await new Promise<number>((resolve) => parent.stdout.once('data', (bytes) => resolve(Number(bytes))))
    await vi.waitFor(async () => expect(await startOf(pid)).toBeUndefined())
    expect(existsSync(`/proc/${pid}/stat`)).toBe(true)
    parent.kill()
    const text = await entryText(socket, [process.pid])
    const before = text.replace(/"started":"(\d+)"/, (_, ticks) => `"started":"${Number(ticks) - 1}"`)
    expect(before).not.toBe(text)
    await writeEntry(entry(), before)
    expect(await orphans()).toHaveLength(1)
  })

  it('leaves alone what the pid namespace of another host or container holds', async () => {
    const text = await entryText(socket, [dead()])
    await writeEntry(entry(), text.replace(/pid:\[\d+\]/, 'pid:[1]'))
    expect(await orphans()).toEqual([])
    expect(existsSync(entry())).toBe(true)
  })

  it('erases what means nothing any more', async () => {
    const text = await entryText(socket, [dead()])
    await note([dead()])
    rmSync(entry())
    const junk = [
      '',
      '{',
      'null',
      '[]',
      '{"holders":[null]}',
      '{"holders":7}',
      text.padEnd(10_000),
      text.replace('qmp', 'gone'),
    ]
    for (const [i, words] of junk.entries()) writeFileSync(`${entry()}-${i}`, words)
    expect(await orphans()).toEqual([])
    expect(readdirSync(path.dirname(entry()))).toEqual([])
    // A QEMU that was started anew has made its socket anew.
    await writeEntry(entry(), text)
    rmSync(socket)
    writeFileSync(`${socket}-between`, '')
    writeFileSync(socket, '')
    expect(await orphans()).toEqual([])
    expect(existsSync(entry())).toBe(false)
    rmSync(socket)
    await note([dead()])
    expect(await orphans()).toEqual([])
    expect(existsSync(entry())).toBe(false)
  })

  it('is not used where others can write to it', async () => {
    await note([dead()])
    const refused = {
      code: 'ERR_CLOUDAPP_SOURCE',
      message: expect.stringContaining('others can write to it: chmod go-w'),
    }
    chmodSync(path.dirname(entry()), 0o770)
    await expect(orphans()).rejects.toMatchObject(refused)
    await expect(note([dead()])).rejects.toMatchObject(refused)
  })

  it('keeps a pause from beginning that can not be written down', async () => {
    mkdirSync(path.join(folder, 'unit'))
    writeFileSync(path.dirname(entry()), '')
    await expect(note([dead()])).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_SOURCE',
      message: expect.stringContaining('a VM is paused only once that is written down in'),
    })
  })
})
