import { createServer, type Server, type Socket } from 'node:net'

/** What a command in the guest gave. */
export interface GuestOutput {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
}

export interface GuestRunOptions {
  /** Default 60 s. */
  readonly timeoutMs?: number
  /** Throw if the command's status is not 0 (default true). */
  readonly check?: boolean
}

/** No answer within the time given. */
export class Silence extends Error {}

/** Longest line taken from the guest: base64 of about 12 MiB. */
const LINE_LIMIT = 16 * 1024 * 1024
/** Longest script in one line; the guest's tty buffers 64 KiB and has no flow control. */
const SCRIPT_LIMIT = 24 * 1024

interface Waiting {
  resolve(fields: string[]): void
  reject(error: Error): void
}

/** The rig's end of the command channel; QEMU connects the guest's second serial port to it. */
export class GuestAgent {
  private socket: Socket | undefined
  private buffered = ''
  private nextId = 1
  private readonly waiting = new Map<string, Waiting>()
  private failure: Error | undefined
  private queue: Promise<unknown> = Promise.resolve()

  private constructor(
    private readonly server: Server,
    private readonly sideBySide: boolean,
  ) {
    server.on('connection', (socket) => {
      this.socket = socket
      socket.setEncoding('latin1')
      socket.on('data', (text: string) => this.receive(text))
      socket.on('error', (error) => this.fail(error))
      socket.on('close', () => this.fail(new Error('The guest has gone')))
    })
  }

  /** `sideBySide`: its agent says `@gotID` once it has read a script, and reads the next one while that runs. */
  static async listen(path: string, sideBySide = false): Promise<GuestAgent> {
    const server = createServer()
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(path, resolve)
    })
    return new GuestAgent(server, sideBySide)
  }

  /** Resolves when the guest's agent has said it is ready. */
  ready(timeoutMs: number): Promise<unknown> {
    return this.expect('ready', timeoutMs, 'the guest to be ready')
  }

  /** Runs a script by the guest's sh; one after the other, unless its agent runs them side by side. */
  async run(script: string, options: GuestRunOptions = {}): Promise<GuestOutput> {
    const { timeoutMs = 60_000, check = true } = options
    const encoded = Buffer.from(script).toString('base64')
    if (encoded.length > SCRIPT_LIMIT) throw new Error(`A script of ${script.length} bytes is too long for the guest`)
    const turn = this.queue.then(async () => {
      const id = String(this.nextId++)
      const what = `'${script.slice(0, 200)}' in the guest`
      const answer = this.expect(id, timeoutMs, what)
      const taken = this.sideBySide ? this.expect(`got${id}`, timeoutMs, what) : answer
      // Awaited below; until then a failure has no listener.
      for (const promise of [answer, taken]) promise.catch(() => {})
      this.socket?.write(`${id} ${encoded}\n`)
      return { answer, taken }
    })
    // The next command waits its turn whatever became of this one.
    this.queue = turn.then(({ taken }) => taken).catch(() => {})
    const [status = '', out = '', err = ''] = await (await turn).answer
    const output = { status: Number(status), stdout: decode(out), stderr: decode(err) }
    if (check && output.status !== 0) {
      throw new Error(
        `'${script.slice(0, 200)}' ended with ${output.status} in the guest\n${output.stderr}${output.stdout}`,
      )
    }
    return output
  }

  /** Writes a file in the guest. */
  async push(name: string, content: Uint8Array | string, mode = 0o644): Promise<void> {
    const encoded = Buffer.from(content).toString('base64')
    const step = 16 * 1024
    for (let at = 0; at === 0 || at < encoded.length; at += step) {
      const redirect = at === 0 ? '>' : '>>'
      await this.run(`printf %s '${encoded.slice(at, at + step)}' ${redirect} /run/rig/push`)
    }
    await this.run(`base64 -d < /run/rig/push > '${name}' && rm /run/rig/push && chmod ${mode.toString(8)} '${name}'`)
  }

  /** Reads a file of the guest. */
  async pull(name: string): Promise<Buffer> {
    const { stdout } = await this.run(`base64 -w0 '${name}'`)
    return Buffer.from(stdout, 'base64')
  }

  /** Makes every call, waiting and later, fail. */
  fail(error: Error): void {
    this.failure ??= error
    for (const waiting of this.waiting.values()) waiting.reject(this.failure)
    this.waiting.clear()
  }

  close(): void {
    this.fail(new Error('The VM was closed'))
    this.socket?.destroy()
    this.server.close()
  }

  private expect(id: string, timeoutMs: number, what: string): Promise<string[]> {
    return new Promise((resolve, reject) => {
      if (this.failure) return reject(this.failure)
      const timer = setTimeout(() => {
        this.waiting.delete(id)
        reject(new Silence(`Waited ${timeoutMs} ms in vain for ${what}`))
      }, timeoutMs)
      const settle = <T>(then: (value: T) => void) => {
        return (value: T): void => {
          clearTimeout(timer)
          this.waiting.delete(id)
          then(value)
        }
      }
      this.waiting.set(id, { resolve: settle(resolve), reject: settle(reject) })
    })
  }

  private receive(text: string): void {
    this.buffered += text
    if (this.buffered.length > LINE_LIMIT) {
      this.buffered = ''
      this.fail(new Error('The guest sent a line without end'))
      return
    }
    if (!text.includes('\n')) return
    const lines = this.buffered.split('\n')
    this.buffered = lines.pop() ?? ''
    for (const line of lines) {
      const [id, ...fields] = line.trimEnd().replace(/^.*?@/, '').split(' ')
      if (id) this.waiting.get(id)?.resolve(fields)
    }
  }
}

const decode = (base64: string): string => Buffer.from(base64, 'base64').toString()
