import { type ChildProcess, spawn } from 'node:child_process'
import { Socket } from 'node:net'
import { CloudAppError } from '../../errors.js'
import { nativeForChild } from '../../native/child.js'

// A program of its own, given as text so that it needs no file of its own in the package. It pauses and unpauses itself, so
// that it knows exactly what is owed, and pays it at the end of its standard input, which comes whatever way we die.
const PROGRAM = `
const [koffiPath, libraryPath, domid] = process.argv.slice(1)
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(name, () => {})
process.stdout.on('error', () => {})
const library = require(koffiPath).load(libraryPath)
const calls = { p: library.func('int32_t ca_xen_pause(uint32_t)'), u: library.func('int32_t ca_xen_unpause(uint32_t)') }
const lastError = library.func('int32_t ca_last_error(void *, uint32_t)')
let owed = 0
const answer = (result) => {
  const text = Buffer.alloc(512)
  const length = result < 0 ? Math.min(lastError(text, text.length), text.length - 1) : 0
  process.stdout.write(result + ' ' + text.toString('utf8', 0, length).replaceAll('\\n', ' ') + '\\n')
}
process.stdin.on('data', (bytes) => {
  for (const word of bytes.toString('latin1')) {
    const result = calls[word](Number(domid))
    if (result === 0) owed += word === 'p' ? 1 : -1
    answer(result)
  }
})
process.stdin.on('close', () => {
  for (; owed > 0; owed--) calls.u(Number(domid))
  process.exit(0)
})
answer(0)
`

const ANSWER_LIMIT = 60_000
const LINE_LIMIT = 4096

/**
 * The process that holds a domain paused for us. Xen counts pauses and ties them to nobody: one whose caller was killed stays
 * for ever. This process outlives ours by as long as it takes to undo them.
 */
export class XenPauseGuard {
  readonly #child: ChildProcess
  #text = ''
  #failure: CloudAppError | undefined
  #waiting: { resolve(line: string): void; reject(error: CloudAppError): void } | undefined

  private constructor(child: ChildProcess) {
    this.#child = child
    child.stdout?.on('data', (bytes: Buffer) => this.#receive(bytes))
    // Writes to a guard that has gone are told by its exit.
    child.stdin?.on('error', () => {})
    const gone = (cause?: unknown): void => this.#fail('The process that holds the paused domain can not run', cause)
    child.on('error', gone)
    child.on('exit', () => gone())
  }

  /** @throws CloudAppError ERR_CLOUDAPP_SOURCE if it does not start; ERR_CLOUDAPP_NATIVE. */
  static async start(domid: number): Promise<XenPauseGuard> {
    const { koffi, library } = nativeForChild()
    // detached: a Ctrl-C at the terminal goes to the whole foreground group, and the guard must outlive us.
    const child = spawn(process.execPath, ['-e', PROGRAM, koffi, library, String(domid)], {
      detached: true,
      stdio: ['pipe', 'pipe', 'ignore'],
      env: {},
      cwd: '/',
    })
    // Nor may the guard keep us alive.
    child.unref()
    for (const end of [child.stdin, child.stdout]) if (end instanceof Socket) end.unref()
    const guard = new XenPauseGuard(child)
    try {
      await guard.#answer()
    } catch (error) {
      guard.close()
      throw error
    }
    return guard
  }

  /** False once it has died: then what it paused is ours to undo. */
  get alive(): boolean {
    return this.#failure === undefined
  }

  /** @throws CloudAppError ERR_CLOUDAPP_SOURCE if Xen refuses or the guard has gone. */
  async pause(): Promise<void> {
    await this.#tell('p')
  }

  async unpause(): Promise<void> {
    await this.#tell('u')
  }

  /** Ends the guard, which undoes what is left. */
  close(): void {
    this.#child.stdin?.end()
  }

  async #tell(word: 'p' | 'u'): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure
    this.#child.stdin?.write(word)
    await this.#answer()
  }

  async #answer(): Promise<void> {
    const line = await new Promise<string>((resolve, reject) => {
      if (this.#failure !== undefined) return reject(this.#failure)
      const timer = setTimeout(
        () => this.#fail(`The process that holds the paused domain did not answer in ${ANSWER_LIMIT} ms`),
        ANSWER_LIMIT,
      )
      const settle = <T>(then: (value: T) => void) => {
        return (value: T): void => {
          clearTimeout(timer)
          this.#waiting = undefined
          then(value)
        }
      }
      this.#waiting = { resolve: settle(resolve), reject: settle(reject) }
      this.#next()
    })
    if (!line.startsWith('0')) throw new CloudAppError('ERR_CLOUDAPP_SOURCE', line.replace(/^\S* ?/, ''))
  }

  #receive(bytes: Buffer): void {
    this.#text += bytes.toString('utf8')
    if (this.#text.length > LINE_LIMIT) this.#fail('The process that holds the paused domain babbles')
    else this.#next()
  }

  #next(): void {
    const end = this.#text.indexOf('\n')
    if (end < 0 || this.#waiting === undefined) return
    const line = this.#text.slice(0, end)
    this.#text = this.#text.slice(end + 1)
    this.#waiting.resolve(line)
  }

  #fail(message: string, cause?: unknown): void {
    this.#failure ??= new CloudAppError('ERR_CLOUDAPP_SOURCE', message, cause === undefined ? {} : { cause })
    this.#waiting?.reject(this.#failure)
  }
}
