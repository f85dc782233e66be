import { type ChildProcess, spawn } from 'node:child_process'
import { Socket } from 'node:net'
import { CloudAppError } from '../../errors.js'
import { nativeError } from '../../native/shim.js'

/** cloudapp_events.h: CA_FRAME_HEADER, CA_FRAME_MAX, enum ca_frame. */
const HEADER = 12
const MOST = 8192
export const FRAME = {
  subscribe: 1,
  unsubscribe: 2,
  pause: 3,
  unpause: 4,
  probe: 5,
  synthetic: 6,
  reply: 64,
  wake: 65,
  gone: 66,
} as const

/** Of the reply an agent begins with. */
const STARTED = 0

/** ms the agent may take for an answer: an emulated host is slow, and a pause waits for every vCPU. */
const ANSWER_LIMIT = 60_000
/** Bytes of the agent's standard error that are kept for an error's message. */
const LAST_WORDS = 1024

interface Pending {
  resolve(value: number): void
  reject(error: CloudAppError): void
}

/**
 * One run of the event agent and the control socket to it. It outlives us by as long as it takes to put everything back,
 * whatever way we die.
 */
export class AgentProcess {
  /** The ring has records. */
  onWake: () => void = () => {}
  /** It has ended, and not because of {@link close}; once, or never. `gone`: its domain has. */
  onEnd: (reason: CloudAppError, gone: boolean) => void = () => {}
  readonly #child: ChildProcess
  readonly #control: Socket
  readonly #exited: Promise<string>
  readonly #pending = new Map<number, Pending>()
  #received: Buffer = Buffer.alloc(0)
  #lastWords = ''
  #serial = 0
  #holds = 0
  #failure: CloudAppError | undefined
  #closing = false

  private constructor(child: ChildProcess, control: Socket) {
    this.#child = child
    this.#control = control
    control.on('data', (bytes: Buffer) => this.#receive(bytes))
    // Its exit tells of a socket that broke.
    control.on('error', () => {})
    child.stderr?.on('data', (bytes: Buffer) => {
      this.#lastWords = (this.#lastWords + bytes.toString('utf8')).slice(-LAST_WORDS)
    })
    this.#exited = new Promise((resolve) => {
      child.once('error', (error) => resolve(error.message))
      child.once('close', (code, signal) => resolve(signal ?? `status ${code ?? 0}`))
    })
    void this.#exited.then((how) => {
      const words = this.#lastWords.trim().replaceAll('\n', '; ')
      this.#end(`the event agent has ended (${how})${words === '' ? '' : `: ${words}`}`, false)
    })
  }

  /**
   * @param ring a descriptor of the ring; stays the caller's
   * @throws CloudAppError `ERR_CLOUDAPP_SOURCE`, `ERR_CLOUDAPP_UNSUPPORTED`, by its first answer
   */
  static async start(path: string, args: readonly string[], ring: number): Promise<AgentProcess> {
    // detached: a Ctrl-C at the terminal goes to the whole foreground group, and the agent must outlive us.
    const child = spawn(path, args, {
      detached: true,
      stdio: ['ignore', 'ignore', 'pipe', 'pipe', ring],
      env: {},
      cwd: '/',
    })
    const control = child.stdio[3]
    if (!(control instanceof Socket)) {
      throw new CloudAppError('ERR_CLOUDAPP_SOURCE', `the event agent ${path} can not be started`)
    }
    // Nor may the agent keep us alive, unless somebody waits for it.
    child.unref()
    control.unref()
    if (child.stderr instanceof Socket) child.stderr.unref()
    const agent = new AgentProcess(child, control)
    try {
      await agent.#answer(STARTED)
      return agent
    } catch (error) {
      control.destroy()
      throw error
    }
  }

  get alive(): boolean {
    return this.#failure === undefined && !this.#closing
  }

  /** Resolves when the process has ended, with how. */
  get exited(): Promise<string> {
    return this.#exited
  }

  /** Of the process; for tests that kill it. */
  get pid(): number | undefined {
    return this.#child.pid
  }

  /** Keeps this process alive until {@link unref}, as one who waits for events does. */
  ref(): void {
    if (this.#holds++ === 0) this.#control.ref()
  }

  unref(): void {
    if (--this.#holds === 0) this.#control.unref()
  }

  /**
   * Asks the agent.
   *
   * @returns the value of its reply
   * @throws CloudAppError what it replies; `ERR_CLOUDAPP_SOURCE` once it has ended; `ERR_CLOUDAPP_TIMEOUT`
   */
  request(type: number, payload: Uint8Array = new Uint8Array(0)): Promise<number> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure)
    if (this.#closing) return Promise.reject(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the event agent is closed'))
    this.#serial = (this.#serial % 0xffff_ffff) + 1
    const id = this.#serial
    const frame = Buffer.alloc(HEADER + payload.length)
    frame.writeUInt32LE(payload.length, 0)
    frame.writeUInt32LE(type, 4)
    frame.writeUInt32LE(id, 8)
    frame.set(payload, HEADER)
    this.#control.write(frame)
    return this.#answer(id)
  }

  #answer(id: number): Promise<number> {
    this.ref()
    return new Promise<number>((resolve, reject) => {
      const timer = setTimeout(() => {
        settle(reject)(
          new CloudAppError('ERR_CLOUDAPP_TIMEOUT', `the event agent did not answer in ${ANSWER_LIMIT} ms`),
        )
      }, ANSWER_LIMIT)
      const settle = <T>(done: (value: T) => void) => {
        return (value: T): void => {
          clearTimeout(timer)
          if (this.#pending.delete(id)) this.unref()
          done(value)
        }
      }
      this.#pending.set(id, { resolve: settle(resolve), reject: settle(reject) })
    })
  }

  /** Ends the agent: it puts everything back first. Idempotent. @throws CloudAppError `ERR_CLOUDAPP_TIMEOUT` */
  async close(): Promise<void> {
    this.#closing = true
    for (const { reject } of [...this.#pending.values()]) {
      reject(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the event agent is closed'))
    }
    this.#control.end()
    this.#child.ref()
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        // Not killed: it is putting the guest's bytes back.
        reject(new CloudAppError('ERR_CLOUDAPP_TIMEOUT', `the event agent did not end in ${ANSWER_LIMIT} ms`))
      }, ANSWER_LIMIT)
    })
    try {
      await Promise.race([this.#exited, late])
    } finally {
      clearTimeout(timer)
      this.#child.unref()
      this.#control.destroy()
    }
  }

  #receive(bytes: Buffer): void {
    this.#received = this.#received.length === 0 ? bytes : Buffer.concat([this.#received, bytes])
    while (this.#received.length >= HEADER) {
      const size = this.#received.readUInt32LE(0)
      if (size > MOST) {
        this.#control.destroy()
        this.#end(`the event agent sent a frame of ${size} bytes`, false)
        return
      }
      if (this.#received.length < HEADER + size) return
      const type = this.#received.readUInt32LE(4)
      const id = this.#received.readUInt32LE(8)
      const payload = this.#received.subarray(HEADER, HEADER + size)
      this.#received = this.#received.subarray(HEADER + size)
      this.#frame(type, id, payload)
    }
  }

  #frame(type: number, id: number, payload: Buffer): void {
    if (type === FRAME.wake) this.onWake()
    else if (type === FRAME.gone) this.#end(payload.toString('utf8'), true)
    else if (type === FRAME.reply && payload.length >= 8) {
      const value = Number(payload.readBigInt64LE(0))
      const pending = this.#pending.get(id)
      if (value >= 0) pending?.resolve(value)
      else pending?.reject(nativeError(value, payload.toString('utf8', 8)))
    } else {
      this.#control.destroy()
      this.#end(`the event agent sent an unknown frame (${type})`, false)
    }
  }

  #end(message: string, gone: boolean): void {
    if (this.#failure !== undefined) return
    this.#failure = new CloudAppError('ERR_CLOUDAPP_SOURCE', message)
    for (const { reject } of [...this.#pending.values()]) reject(this.#failure)
    if (!this.#closing) this.onEnd(this.#failure, gone)
  }
}
