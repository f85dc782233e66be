// Runs one program of the test run: its output goes through, its process group ends with us. Node's own modules only:
// this must run before npm install.
import { spawn } from 'node:child_process'

const running = new Set()

/** Ends every process group we started, as when the run is interrupted. */
export function endAll(signal = 'SIGTERM') {
  for (const child of running) {
    try {
      process.kill(-child.pid, signal)
    } catch (error) {
      if (error.code !== 'ESRCH') throw error
    }
  }
}

/**
 * @param {readonly string[]} command program and arguments
 * @param {{ cwd?: string, env?: Record<string, string>, minutes?: number, quiet?: boolean }} options `quiet`: the output
 *   is returned only
 * @returns {Promise<{ ok: boolean, how: string, output: string }>} how it ended, in words, and the end of its output
 */
export function run(command, options = {}) {
  const { cwd, env = {}, minutes = 10, quiet = false } = options
  return new Promise((resolve) => {
    const [program, ...args] = command
    const child = spawn(program, args, {
      cwd,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      // Its own process group, so that what it started ends with it.
      detached: true,
    })
    running.add(child)
    let output = ''
    let late = false
    const timer = setTimeout(() => {
      late = true
      endOne(child, 'SIGTERM')
      setTimeout(() => endOne(child, 'SIGKILL'), 10_000).unref()
    }, minutes * 60_000)
    const take = (stream) => (chunk) => {
      output = (output + chunk).slice(-1_000_000)
      if (!quiet) stream.write(chunk)
    }
    child.stdout.setEncoding('utf8').on('data', take(process.stdout))
    child.stderr.setEncoding('utf8').on('data', take(process.stderr))
    const done = (ok, how) => {
      clearTimeout(timer)
      running.delete(child)
      resolve({ ok, how, output })
    }
    child.on('error', (error) => done(false, `could not start ${program}: ${error.message}`))
    child.on('close', (code, signal) => {
      if (late) done(false, `took longer than ${minutes} minutes`)
      else if (signal) done(false, `ended by ${signal}`)
      else done(code === 0, `exit code ${code}`)
    })
  })
}

function endOne(child, signal) {
  if (child.exitCode !== null || child.signalCode !== null) return
  try {
    process.kill(-child.pid, signal)
  } catch (error) {
    if (error.code !== 'ESRCH') throw error
  }
}
