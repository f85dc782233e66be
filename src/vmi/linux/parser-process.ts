import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { CloudAppError } from '../../errors.js'
import { profileError } from './errors.js'
import type { ParsedImage, ParseJob } from './parser/image.js'
import { FRAME_HEADER, Frame, frameHeader, PARSER_LIMITS } from './parser/protocol.js'

/** What the parser process delivered; nothing of it is checked yet but sizes. */
export interface ParserAnswer {
  readonly image: ParsedImage
  readonly symbols: Uint8Array
  readonly types: Uint8Array
}

export interface ParserOptions {
  readonly signal?: AbortSignal | undefined
  /** The program to run instead of the built parser; for tests. */
  readonly script?: string | undefined
  /** Milliseconds for the whole parse; {@link PARSER_LIMITS}.deadline by default. */
  readonly deadline?: number | undefined
}

/** Serves image bytes: what can not be read is zero. */
export type Serve = (at: number, length: number) => Promise<Uint8Array>

/**
 * Where the built parser lies: beside this module in the package, or, when the sources run unbuilt (tests), where
 * the test set-up builds it.
 */
function parserScript(): string {
  const here = import.meta.url
  const places = here.endsWith('.ts')
    ? ['../../../.cache/vmi/parser.mjs']
    : ['./parser.js', './vmi/parser.js', '../vmi/parser.js', '../../vmi/parser.js']
  for (const place of places) {
    const path = fileURLToPath(new URL(place, here))
    if (existsSync(path)) return path
  }
  throw profileError('parser', 'the built parser program is missing from this installation', {
    details: { lookedIn: places.map((place) => fileURLToPath(new URL(place, here))) },
  })
}

/** Node's permission model keeps even the parser's own JavaScript from files, processes and add-ons. */
function permissionFlags(script: string): string[] {
  const { allowedNodeEnvironmentFlags: known } = process
  const flag = ['--permission', '--experimental-permission'].find((name) => known.has(name))
  return flag === undefined ? [] : [flag, `--allow-fs-read=${script}`]
}

/**
 * One parser process: started at once (so that it comes up while memory is searched), given one job, and gone
 * afterwards. Whatever it does — crash, babble, hang, ask for too much — ends in ERR_CLOUDAPP_PROFILE.
 */
export class ParserProcess {
  readonly #child: ChildProcessWithoutNullStreams
  readonly #timer: NodeJS.Timeout
  readonly #signal: AbortSignal | undefined
  #failure: CloudAppError | undefined
  #pending = Buffer.alloc(0)
  #chunks: Buffer[] = []
  #buffered = 0
  #wake: (() => void) | undefined
  #ended = false
  #stderr = ''
  #closed = false

  private constructor(options: ParserOptions) {
    const script = options.script ?? parserScript()
    this.#child = spawn(
      process.execPath,
      [
        `--max-old-space-size=${PARSER_LIMITS.heap}`,
        '--no-warnings',
        '--no-addons',
        ...permissionFlags(script),
        script,
      ],
      // An empty environment: no NODE_OPTIONS, no secrets. Descriptors besides the pipes are close-on-exec.
      { stdio: ['pipe', 'pipe', 'pipe'], env: {}, cwd: '/', windowsHide: true },
    )
    const deadline = options.deadline ?? PARSER_LIMITS.deadline
    this.#timer = setTimeout(
      () => this.#fail(profileError('parser', `no answer within ${deadline} ms`, { details: { reason: 'timeout' } })),
      deadline,
    )
    this.#timer.unref()
    this.#child.stdout.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk)
      this.#buffered += chunk.length
      if (this.#buffered > 2 * PARSER_LIMITS.section)
        this.#fail(profileError('parser', 'it sends without end', { details: { reason: 'too large' } }))
      this.#notify()
    })
    this.#child.stderr.on('data', (chunk: Buffer) => {
      if (this.#stderr.length < 2048) this.#stderr += chunk.toString('latin1')
    })
    this.#child.stdin.on('error', (cause) => this.#fail(profileError('parser', 'it closed its input', { cause })))
    this.#child.on('error', (cause) => this.#fail(profileError('parser', 'it could not be started', { cause })))
    this.#child.on('close', (code, signal) => {
      this.#ended = true
      if (this.#failure === undefined && !this.#closed) this.#exit = { code, signal }
      this.#notify()
    })
    this.#signal = options.signal
    if (options.signal?.aborted) this.#abort()
    options.signal?.addEventListener('abort', this.#abort, { once: true })
  }

  #exit: { code: number | null; signal: string | null } | undefined

  /** Starts a process. Close it when done. */
  static start(options: ParserOptions = {}): ParserProcess {
    return new ParserProcess(options)
  }

  readonly #abort = (): void => {
    this.#fail(new CloudAppError('ERR_CLOUDAPP_ABORTED', 'attaching was aborted', { cause: this.#signal?.reason }))
  }

  #fail(error: CloudAppError): void {
    this.#failure ??= error
    this.#child.kill('SIGKILL')
    this.#notify()
  }

  #notify(): void {
    const wake = this.#wake
    this.#wake = undefined
    wake?.()
  }

  /** Ends the process. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    clearTimeout(this.#timer)
    this.#signal?.removeEventListener('abort', this.#abort)
    this.#child.kill('SIGKILL')
  }

  [Symbol.dispose](): void {
    this.close()
  }

  async #take(length: number): Promise<Buffer> {
    for (;;) {
      if (this.#failure !== undefined) throw this.#failure
      if (this.#pending.length + this.#buffered >= length) {
        if (this.#pending.length < length) {
          this.#pending = Buffer.concat([this.#pending, ...this.#chunks])
          this.#chunks = []
          this.#buffered = 0
        }
        const taken = this.#pending.subarray(0, length)
        this.#pending = this.#pending.subarray(length)
        return taken
      }
      if (this.#ended) {
        const how = this.#exit?.signal ?? `exit code ${this.#exit?.code ?? 'unknown'}`
        throw profileError('parser', `it ended without an answer (${how})`, {
          details: { reason: 'crashed', stderr: printable(this.#stderr) },
        })
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  async #frame(): Promise<{ type: number; body: Buffer }> {
    const header = await this.#take(FRAME_HEADER)
    const length = header.readUInt32LE() - 1
    const type = header[4] as number
    if (length < 0 || length > maxBody(type))
      throw profileError('parser', `an answer of ${length} bytes (frame ${type}) is refused`, {
        details: { reason: 'too large' },
      })
    return { type, body: await this.#take(length) }
  }

  #send(type: number, body: Uint8Array): void {
    this.#child.stdin.write(frameHeader(type, body.length))
    this.#child.stdin.write(body)
  }

  /**
   * Has the image parsed. `serve` is asked only for ranges inside `job.size`.
   * @throws ERR_CLOUDAPP_PROFILE with the part, or with `details.reason` if the parser misbehaved; ERR_CLOUDAPP_ABORTED
   */
  async parse(job: ParseJob, serve: Serve): Promise<ParserAnswer> {
    try {
      const hello = await this.#frame()
      const { uid } = json(hello, Frame.Hello) as { uid?: unknown }
      if (process.getuid?.() === 0 && (typeof uid !== 'number' || uid === 0))
        throw profileError('parser', 'it did not give up its rights', { details: { reason: 'privileged' } })
      this.#send(Frame.Job, Buffer.from(JSON.stringify(job)))
      let image: ParsedImage | undefined
      let symbols: Uint8Array | undefined
      let types: Uint8Array | undefined
      let reads = 0
      let bytes = 0
      for (;;) {
        const frame = await this.#frame()
        switch (frame.type) {
          case Frame.Read: {
            if (frame.body.length !== 8) throw profileError('parser', 'a malformed request', { details: BAD })
            const at = frame.body.readUInt32LE()
            const length = frame.body.readUInt32LE(4)
            reads++
            bytes += length
            if (reads > PARSER_LIMITS.reads || bytes > PARSER_LIMITS.readBytes)
              throw profileError('parser', `it asked for more than ${PARSER_LIMITS.readBytes} bytes of image`, {
                details: { reason: 'too many requests' },
              })
            if (length > PARSER_LIMITS.readLength || at + length > job.size)
              throw profileError('parser', `it asked for ${length} bytes at ${at}, outside the image`, { details: BAD })
            this.#send(Frame.Data, await serve(at, length))
            break
          }
          case Frame.Image:
            image = json(frame, Frame.Image) as ParsedImage
            break
          case Frame.Symbols:
            symbols = Uint8Array.from(frame.body)
            break
          case Frame.Types:
            types = Uint8Array.from(frame.body)
            break
          case Frame.Failed: {
            const { part, message } = json(frame, Frame.Failed) as { part?: unknown; message?: unknown }
            const told = printable(String(message)).replace(/^kernel profile: [^:]{1,64}: /, '')
            throw profileError(printable(String(part)).slice(0, 64), told)
          }
          case Frame.Done:
            if (image === undefined || symbols === undefined || types === undefined)
              throw profileError('parser', 'its answer is incomplete', { details: BAD })
            return { image, symbols, types }
          default:
            throw profileError('parser', `frame ${frame.type} is unknown`, { details: BAD })
        }
      }
    } finally {
      this.close()
    }
  }
}

const BAD = { reason: 'garbage' } as const

function maxBody(type: number): number {
  if (type === Frame.Symbols || type === Frame.Types) return PARSER_LIMITS.section
  return type === Frame.Read ? 8 : PARSER_LIMITS.json
}

function json(frame: { type: number; body: Buffer }, type: number): object {
  if (frame.type !== type) throw profileError('parser', `frame ${frame.type} where ${type} belongs`, { details: BAD })
  let value: unknown
  try {
    value = JSON.parse(frame.body.toString('utf8'))
  } catch (cause) {
    throw profileError('parser', 'its answer is no JSON', { cause, details: BAD })
  }
  if (typeof value !== 'object' || value === null)
    throw profileError('parser', 'its answer is no object', { details: BAD })
  return value
}

/** Text from the parser goes into error messages: printable ASCII only, and not endless. */
function printable(text: string): string {
  return text.slice(0, 2048).replace(/[^\x20-\x7e]/g, '?')
}
