import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import type { RigOptions } from './types.js'

// Whatever way this process ends, nothing it started may stay: the kernel kills the children of a SIGKILLed parent
// (PR_SET_PDEATHSIG), the handlers below do it in every other case, and the next run sweeps folders left behind.
const children = new Set<ChildProcess>()
const folders = new Set<string>()
let installed = false

const cleanUp = (): void => {
  for (const child of children) if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
  for (const folder of folders) rmSync(folder, { recursive: true, force: true })
}

function install(): void {
  if (installed) return
  installed = true
  process.once('exit', cleanUp)
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    const handler = (): void => {
      cleanUp()
      process.removeListener(signal, handler)
      // A host program with a handler of its own decides what happens next; without one, the signal does.
      if (process.listenerCount(signal) === 0) process.kill(process.pid, signal)
    }
    process.on(signal, handler)
  }
}

/**
 * Starts a program that can not outlive this process. `child.pid` is the program's own pid (the wrappers exec).
 * PR_SET_PDEATHSIG acts when the starting thread ends: call it from the main thread.
 */
export function start(command: string, args: readonly string[], options: SpawnOptions = {}): ChildProcess {
  install()
  const check = '[ "$PPID" = "$0" ] || exit 125; exec "$@"'
  const wrapped = ['--pdeathsig', 'KILL', 'sh', '-c', check, String(process.pid), command, ...args]
  const child = spawn('setpriv', wrapped, options)
  children.add(child)
  child.once('exit', () => children.delete(child))
  child.once('error', () => children.delete(child))
  return child
}

/** Ends a program started here: SIGTERM, and SIGKILL if it is still there after `graceMs`. Waits until it has gone. */
export async function stop(child: ChildProcess, graceMs = 3000): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  child.kill('SIGTERM')
  const timer = setTimeout(() => child.kill('SIGKILL'), graceMs)
  await gone
  clearTimeout(timer)
}

export interface RunOptions extends RigOptions {
  readonly cwd?: string
  readonly env?: NodeJS.ProcessEnv
  /** Ends the program and throws after so long. */
  readonly timeoutMs?: number
  /** Bytes for its standard input. */
  readonly input?: Uint8Array
}

const OUTPUT_LIMIT = 8 * 1024 * 1024

/** Runs a program to its end and gives its standard output. Throws, with the end of what it said, if it fails. */
export async function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  const { timeoutMs = 600_000, signal } = options
  signal?.throwIfAborted()
  const child = start(command, args, {
    stdio: ['pipe', 'pipe', 'pipe'],
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.env === undefined ? {} : { env: options.env }),
  })
  const out: Buffer[] = []
  const all: Buffer[] = []
  let size = 0
  const keep = (chunk: Buffer, stdout: boolean): void => {
    size += chunk.length
    if (size > OUTPUT_LIMIT) return
    all.push(chunk)
    if (stdout) out.push(chunk)
  }
  child.stdout?.on('data', (chunk: Buffer) => keep(chunk, true))
  child.stderr?.on('data', (chunk: Buffer) => keep(chunk, false))
  // A program that does not read its input closes the pipe; its exit status tells what matters.
  child.stdin?.on('error', () => {})
  child.stdin?.end(options.input)
  let why = ''
  const kill = (reason: string): void => {
    why = reason
    child.kill('SIGKILL')
  }
  const timer = setTimeout(() => kill(`took longer than ${timeoutMs} ms`), timeoutMs)
  const onAbort = (): void => kill('was aborted')
  signal?.addEventListener('abort', onAbort, { once: true })
  try {
    const status = await new Promise<string>((resolve, reject) => {
      child.once('error', reject)
      child.once('close', (code, name) => resolve(code === null ? String(name) : String(code)))
    })
    if (status === '0') return Buffer.concat(out).toString()
    const said = Buffer.concat(all).toString().trim().split('\n').slice(-15).join('\n')
    throw new Error(`'${command} ${args.join(' ').slice(0, 400)}' ${why || `ended with ${status}`}\n${said}`)
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', onAbort)
  }
}

function startTime(pid: number): string | undefined {
  try {
    // proc(5): field 22 of /proc/PID/stat, counted behind the command name, which may hold blanks.
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
  } catch {
    return undefined
  }
}

/** A name for this process that no later process shares. */
export const ownStamp = (): string => `${process.pid} ${startTime(process.pid)}`

/** True if the process that wrote this stamp still runs. */
export function stampAlive(stamp: string): boolean {
  const [pid, start] = stamp.trim().split(' ')
  return start !== undefined && startTime(Number(pid)) === start
}

/**
 * Makes a folder of mode 0700 that goes with this process: removed by {@link removeFolder}, at exit, or, after a
 * SIGKILL, by the next caller with the same `prefix`.
 */
export function privateFolder(parent: string, prefix: string): string {
  install()
  for (const name of readdirSync(parent)) {
    if (!name.startsWith(prefix)) continue
    const folder = path.join(parent, name)
    try {
      if (!stampAlive(readFileSync(path.join(folder, 'owner'), 'utf8')))
        rmSync(folder, { recursive: true, force: true })
    } catch {
      // No stamp yet: another process is between making its folder and stamping it.
    }
  }
  const folder = mkdtempSync(path.join(parent, prefix))
  folders.add(folder)
  writeFileSync(path.join(folder, 'owner'), ownStamp())
  return folder
}

/** Removes a folder made by {@link privateFolder}. */
export function removeFolder(folder: string): void {
  rmSync(folder, { recursive: true, force: true })
  folders.delete(folder)
}
