import { type ChildProcess, spawn } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface, type Interface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { afterAll } from 'vitest'

export interface ChildOptions {
  readonly uid?: number
  readonly gid?: number
  /** All of its threads leave the processors to whoever else wants them. */
  readonly polite?: boolean
  /** Node's own. */
  readonly flags?: readonly string[]
}

/** A TypeScript file of this folder as a process of its own. */
export class Child {
  readonly process: ChildProcess
  readonly #lines: AsyncIterator<string>
  readonly #reader: Interface

  private constructor(process: ChildProcess) {
    this.process = process
    this.#reader = createInterface({ input: process.stdout as NodeJS.ReadableStream })
    this.#lines = this.#reader[Symbol.asyncIterator]()
  }

  static async start(file: string, args: readonly string[], options: ChildOptions = {}): Promise<Child> {
    const { polite = false, flags = [], ...ids } = options
    const outfile = await bundle(file, ids.uid !== undefined)
    const words = [...(polite ? ['nice', '-n', '19'] : []), process.execPath, ...flags, outfile, ...args]
    const [program, ...rest] = words as [string, ...string[]]
    return new Child(spawn(program, rest, { stdio: ['pipe', 'pipe', 'inherit'], ...ids, cwd: '/' }))
  }

  /** The next line it prints, as JSON; undefined when it has ended. */
  async next(): Promise<Record<string, unknown> | undefined> {
    const { value, done } = await this.#lines.next()
    return done === true ? undefined : (JSON.parse(value) as Record<string, unknown>)
  }

  say(line: string): void {
    this.process.stdin?.write(`${line}\n`)
  }

  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return
    const ended = new Promise((resolve) => this.process.once('exit', resolve))
    this.process.kill(signal)
    await ended
  }
}

const bundles = new Map<string, Promise<string>>()
const folders: string[] = []

// A worker of the test runner is ended without its exit event.
afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true })
})

/** With `alone`, everything but native code is in the file, and every user can read it. */
function bundle(file: string, alone: boolean): Promise<string> {
  const known = bundles.get(`${file} ${alone}`)
  if (known !== undefined) return known
  const made = make(file, alone)
  bundles.set(`${file} ${alone}`, made)
  return made
}

async function make(file: string, alone: boolean): Promise<string> {
  // Under node_modules, so that the bundle finds the packages it leaves out.
  const cache = fileURLToPath(new URL('../../node_modules/.cache/cloudapp-test', import.meta.url))
  mkdirSync(cache, { recursive: true })
  const folder = mkdtempSync(alone ? join(tmpdir(), 'cloudapp-child-') : join(cache, 'broker-'))
  chmodSync(folder, 0o755)
  folders.push(folder)
  const outfile = join(folder, file.replace(/\.ts$/, '.mjs'))
  await build({
    entryPoints: [fileURLToPath(new URL(file, import.meta.url))],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    ...(alone ? { external: ['koffi', 'ffi-napi', 'ref-napi'] } : { packages: 'external' as const }),
    logLevel: 'silent',
  })
  return outfile
}
