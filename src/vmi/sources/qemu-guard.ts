import { type ChildProcess, spawn } from 'node:child_process'
import { Socket } from 'node:net'
import { CloudAppError } from '../../errors.js'
import { entryOf, entryText, eraseEntry, writeEntry } from './qemu-ledger.js'

// A program of its own, given as text so that it needs no file of its own in the package. It waits for the end of its
// standard input, which comes whatever way this process dies. QEMU serves one client of a socket at a time: the guard's
// connection is taken up when ours has gone.
const PROGRAM = `
const [, path, entry] = process.argv
let armed = false
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(name, () => {})
process.stdout.on('error', () => {})
process.stdin.on('data', (bytes) => {
  armed = bytes[bytes.length - 1] === 49
  process.stdout.write('.'.repeat(bytes.length))
})
process.stdin.on('close', () => {
  if (!armed) process.exit(0)
  setTimeout(() => process.exit(1), 60000)
  const socket = require('net').connect(path)
  // Without what rm reports: nobody is left to hear it, and who comes next erases what is left.
  const done = () => entry ? require('fs').rm(entry, () => socket.end()) : socket.end()
  const send = (execute) => socket.write(JSON.stringify({ execute, id: execute }) + '\\n')
  let text = ''
  socket.on('error', () => process.exit(1))
  socket.on('close', () => process.exit(0))
  socket.on('data', (bytes) => {
    text = (text + bytes).slice(-1048576)
    for (let end; (end = text.indexOf('\\n')) >= 0; text = text.slice(end + 1)) {
      let message
      try { message = JSON.parse(text.slice(0, end)) } catch { process.exit(1) }
      if (message.QMP) send('qmp_capabilities')
      else if (message.id === 'qmp_capabilities') send('query-status')
      else if (message.error) socket.end()
      else if (message.id === 'query-status') message.return && message.return.status === 'paused' ? send('cont') : done()
      else if (message.id === 'cont') done()
    }
  })
})
process.stdin.resume()
process.stdout.write('.')
`

const START_LIMIT = 20_000

/**
 * A small process that lets the VM run on when this one dies while it holds the VM paused: QMP itself has no such tie
 * between a client and what it stopped. While armed, the end of its pipe makes it send `cont`; should both be killed at once,
 * the ledger tells whoever comes next (qemu-ledger.ts).
 */
export class ResumeGuard {
  readonly #child: ChildProcess
  /** Of the pause in the ledger, which the guard erases after it let the VM run on. */
  #entry: { readonly path: string; readonly text: string } | undefined
  #acknowledged = 0
  #expected = 1
  #waiting: (() => void) | undefined
  #failure: CloudAppError | undefined

  private constructor(child: ChildProcess) {
    this.#child = child
    child.stdout?.on('data', (bytes: Buffer) => {
      this.#acknowledged += bytes.length
      this.#waiting?.()
    })
    // Writes to a guard that has gone are told by its exit.
    child.stdin?.on('error', () => {})
    const gone = (cause?: unknown): void => {
      const message = 'The process that lets the VM run on if this one dies can not run'
      this.#failure ??= new CloudAppError('ERR_CLOUDAPP_SOURCE', message, { cause })
      this.#waiting?.()
    }
    child.on('error', gone)
    child.on('exit', () => gone())
  }

  /** @throws CloudAppError ERR_CLOUDAPP_SOURCE if it does not start. */
  static async start(path: string): Promise<ResumeGuard> {
    const entry = entryOf(path)
    // detached: a Ctrl-C at the terminal goes to the whole foreground group, and the guard must outlive us.
    const child = spawn(process.execPath, ['-e', PROGRAM, path, ...(entry === undefined ? [] : [entry])], {
      detached: true,
      stdio: ['pipe', 'pipe', 'ignore'],
      env: {},
      cwd: '/',
    })
    // Nor may the guard keep us alive.
    child.unref()
    for (const end of [child.stdin, child.stdout]) if (end instanceof Socket) end.unref()
    const guard = new ResumeGuard(child)
    try {
      await guard.#settled()
      if (entry !== undefined)
        guard.#entry = { path: entry, text: await entryText(path, [process.pid, child.pid ?? 0]) }
    } catch (error) {
      guard.close()
      throw error
    }
    return guard
  }

  /** From here on our death lets the VM run on. Resolves when the guard knows, and the ledger. */
  async arm(): Promise<void> {
    await this.#tell('1')
    if (this.#entry !== undefined) await writeEntry(this.#entry.path, this.#entry.text)
  }

  async disarm(): Promise<void> {
    if (this.#entry !== undefined) await eraseEntry(this.#entry.path)
    await this.#tell('0')
  }

  /** Ends the guard; an armed one lets the VM run on, once QEMU takes up its connection. */
  close(): void {
    this.#child.stdin?.end()
  }

  async #tell(word: string): Promise<void> {
    if (this.#failure) throw this.#failure
    this.#expected++
    this.#child.stdin?.write(word)
    await this.#settled()
  }

  #settled(): Promise<void> {
    return new Promise((resolve, reject) => {
      const finish = (error?: CloudAppError): void => {
        clearTimeout(timer)
        this.#waiting = undefined
        if (error) reject(error)
        else resolve()
      }
      const timer = setTimeout(() => {
        const message = `The process that guards the paused VM did not answer in ${START_LIMIT} ms`
        finish(new CloudAppError('ERR_CLOUDAPP_TIMEOUT', message))
      }, START_LIMIT)
      this.#waiting = () => {
        if (this.#acknowledged >= this.#expected) finish()
        else if (this.#failure) finish(this.#failure)
      }
      this.#waiting()
    })
  }
}
