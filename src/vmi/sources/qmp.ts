import { connect, type Socket } from 'node:net'
import { CloudAppError } from '../../errors.js'

/** Bounds on the peer, which is QEMU or whatever answers at that path. */
export const QMP_LIMITS = {
  /** Bytes of one line: one answer or event. */
  line: 16 * 1024 * 1024,
  /** Commands waiting for an answer. */
  pending: 256,
} as const

export interface QmpOptions {
  /** How long the greeting and each answer may take, in ms; 10 s by default. */
  readonly timeoutMs?: number
  readonly signal?: AbortSignal
}

/** An event QEMU sends by itself. */
export interface QmpEvent {
  readonly event: string
  readonly data: Readonly<Record<string, unknown>>
}

interface Pending {
  readonly command: string
  resolve(value: unknown): void
  reject(error: CloudAppError): void
}

type Fields = Readonly<Record<string, unknown>>

const isFields = (value: unknown): value is Fields =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/**
 * A client of the QEMU Machine Protocol on a unix socket (QEMU: docs/interop/qmp-spec.txt). QEMU serves one client of a
 * socket at a time; a second one waits for the first to leave and runs into the time limit here.
 */
export class QmpClient {
  readonly path: string
  /** QEMU's version from the greeting, for example `7.2.22`. */
  version = ''
  private readonly socket: Socket
  private readonly timeoutMs: number
  private readonly pending = new Map<number, Pending>()
  private readonly listeners = new Set<(event: QmpEvent) => void>()
  private readonly ending = new AbortController()
  private chunks: Buffer[] = []
  private buffered = 0
  private nextId = 1
  private greet: { resolve(greeting: Fields): void; reject(error: CloudAppError): void } | undefined

  private constructor(path: string, timeoutMs: number) {
    this.path = path
    this.timeoutMs = timeoutMs
    this.socket = connect(path)
    this.socket.on('data', (chunk: Buffer) => this.receive(chunk))
    this.socket.on('error', (cause) => this.fail(source(`The QMP socket ${path} failed: ${cause.message}`, cause)))
    this.socket.on('close', () => this.fail(source(`QEMU closed the QMP socket ${path}`)))
  }

  /**
   * Connects, reads the greeting and negotiates capabilities.
   * @throws CloudAppError ERR_CLOUDAPP_SOURCE (no such socket, peer gone), ERR_CLOUDAPP_PROTOCOL (not QMP),
   * ERR_CLOUDAPP_TIMEOUT (another client holds the socket), ERR_CLOUDAPP_ABORTED.
   */
  static async connect(path: string, options: QmpOptions = {}): Promise<QmpClient> {
    const { timeoutMs = 10_000, signal } = options
    if (signal?.aborted) throw aborted('connecting')
    const client = new QmpClient(path, timeoutMs)
    try {
      const greeting = await client.bounded<Fields>('the greeting', timeoutMs, signal, (resolve, reject) => {
        client.greet = { resolve, reject }
        return () => {
          client.greet = undefined
        }
      })
      client.version = versionOf(greeting)
      await client.execute('qmp_capabilities', undefined, options)
      return client
    } catch (error) {
      client.close()
      throw error
    }
  }

  /** Fires when the connection ends; `reason` is a CloudAppError. */
  get closed(): AbortSignal {
    return this.ending.signal
  }

  /**
   * Runs one command and gives its `return` value.
   * @throws CloudAppError ERR_CLOUDAPP_SOURCE with `details.class` if QEMU answers with an error;
   * ERR_CLOUDAPP_TIMEOUT, ERR_CLOUDAPP_ABORTED, ERR_CLOUDAPP_CLOSED, ERR_CLOUDAPP_LIMIT.
   */
  async execute(command: string, args?: Fields, options: QmpOptions = {}): Promise<unknown> {
    if (this.ending.signal.aborted) throw this.ending.signal.reason
    if (options.signal?.aborted) throw aborted(command)
    if (this.pending.size >= QMP_LIMITS.pending) {
      throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `${QMP_LIMITS.pending} QMP commands are waiting for an answer`)
    }
    const id = this.nextId++
    return this.bounded(command, options.timeoutMs ?? this.timeoutMs, options.signal, (resolve, reject) => {
      this.pending.set(id, { command, resolve, reject })
      this.socket.write(`${JSON.stringify({ execute: command, ...(args ? { arguments: args } : {}), id })}\n`)
      return () => this.pending.delete(id)
    })
  }

  /** Runs a command of the human monitor; gives its text. */
  async human(line: string, options: QmpOptions = {}): Promise<string> {
    const text = await this.execute('human-monitor-command', { 'command-line': line }, options)
    if (typeof text !== 'string') throw this.protocol(`'${line}' gave no text`)
    return text
  }

  /** Hears QEMU's events until the returned function is called. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.listeners.add(listener)
    return () => this.listeners.delete(listener)
  }

  /** Ends the connection; what waits fails with ERR_CLOUDAPP_CLOSED. Idempotent. */
  close(): void {
    this.fail(new CloudAppError('ERR_CLOUDAPP_CLOSED', `The QMP connection to ${this.path} is closed`))
  }

  /** An error that says the peer does not speak as QMP does. */
  protocol(message: string): CloudAppError {
    return new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `QMP at ${this.path}: ${message}`)
  }

  private bounded<T>(
    what: string,
    timeoutMs: number,
    signal: AbortSignal | undefined,
    begin: (resolve: (value: T) => void, reject: (error: CloudAppError) => void) => () => void,
  ): Promise<T> {
    return new Promise((resolve, reject) => {
      const done = (): void => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', onAbort)
        forget()
      }
      const fail = (error: CloudAppError): void => {
        done()
        reject(error)
      }
      const onAbort = (): void => fail(aborted(what))
      const timer = setTimeout(
        () =>
          fail(
            new CloudAppError('ERR_CLOUDAPP_TIMEOUT', `QMP at ${this.path}: no answer to ${what} in ${timeoutMs} ms`),
          ),
        timeoutMs,
      )
      signal?.addEventListener('abort', onAbort, { once: true })
      const forget = begin((value) => {
        done()
        resolve(value)
      }, fail)
    })
  }

  private receive(chunk: Buffer): void {
    let start = 0
    for (;;) {
      const end = chunk.indexOf(0x0a, start)
      const part = chunk.subarray(start, end < 0 ? chunk.length : end)
      this.buffered += part.length
      if (this.buffered > QMP_LIMITS.line) {
        this.fail(this.protocol(`a line is longer than ${QMP_LIMITS.line} bytes`))
        return
      }
      this.chunks.push(part)
      if (end < 0) return
      const line = Buffer.concat(this.chunks).toString('utf8')
      this.chunks = []
      this.buffered = 0
      start = end + 1
      if (line.trim() !== '' && !this.ending.signal.aborted) this.line(line)
    }
  }

  private line(line: string): void {
    let message: unknown
    try {
      message = JSON.parse(line)
    } catch {
      this.fail(this.protocol('a line is not JSON'))
      return
    }
    if (!isFields(message)) {
      this.fail(this.protocol('a line is not an object'))
    } else if (isFields(message.QMP)) {
      this.greet?.resolve(message.QMP)
    } else if (typeof message.event === 'string') {
      const event: QmpEvent = { event: message.event, data: isFields(message.data) ? message.data : {} }
      for (const listener of this.listeners) listener(event)
    } else if (typeof message.id === 'number') {
      const pending = this.pending.get(message.id)
      // An answer nobody waits for any more came after its time limit.
      if (!pending) return
      if (isFields(message.error)) pending.reject(refused(pending.command, message.error))
      else pending.resolve(message.return)
    } else {
      this.fail(this.protocol('a message is neither an answer nor an event'))
    }
  }

  private fail(error: CloudAppError): void {
    if (this.ending.signal.aborted) return
    this.ending.abort(error)
    this.greet?.reject(error)
    for (const pending of [...this.pending.values()]) pending.reject(error)
    this.chunks = []
    this.socket.destroy()
  }
}

function versionOf(greeting: Fields): string {
  const version = isFields(greeting.version) && isFields(greeting.version.qemu) ? greeting.version.qemu : {}
  return [version.major, version.minor, version.micro].map((part) => Number(part)).join('.')
}

function refused(command: string, error: Fields): CloudAppError {
  const name = typeof error.class === 'string' ? error.class.slice(0, 64) : 'unknown'
  const text = typeof error.desc === 'string' ? error.desc.slice(0, 1024) : ''
  return new CloudAppError('ERR_CLOUDAPP_SOURCE', `QEMU refused ${command}: ${text}`, {
    details: { class: name, command },
  })
}

const source = (message: string, cause?: unknown): CloudAppError =>
  new CloudAppError('ERR_CLOUDAPP_SOURCE', message, cause === undefined ? {} : { cause })

const aborted = (what: string): CloudAppError =>
  new CloudAppError('ERR_CLOUDAPP_ABORTED', `Aborted while waiting for ${what}`)
