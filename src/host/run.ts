import { execFile } from 'node:child_process'
import { CloudAppError } from '../errors.js'

const TIMEOUT_MS = 60_000
/** A policy after macro expansion has some 200 KB. */
const OUTPUT_LIMIT = 16 * 2 ** 20

/** Where Debian keeps the tools of Xen that are on no PATH; the release that runs stands in sysfs. */
const XEN_TOOLS = '/usr/lib/xen-4.17/bin'
const PATHS = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin', XEN_TOOLS].join(':')

/** Debian's packages of the programs that are run here. */
const PACKAGES: Readonly<Record<string, string>> = {
  xl: 'xen-utils-4.17',
  'flask-set-bool': 'xen-utils-4.17',
  'flask-get-bool': 'xen-utils-4.17',
  m4: 'm4',
  checkpolicy: 'checkpolicy',
}

/** Runs a program of the host to its end; gives its standard output. No shell. */
export type Run = (program: string, args: readonly string[], options?: { readonly cwd?: string }) => Promise<string>

/**
 * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` if the program is not installed (the message names the package),
 *   `ERR_CLOUDAPP_TIMEOUT`, `ERR_CLOUDAPP_LIMIT` for too much output, `ERR_CLOUDAPP_SOURCE` with what it said if it fails.
 */
export const run: Run = (program, args, options = {}) =>
  new Promise((resolve, reject) => {
    const env = { PATH: PATHS, LC_ALL: 'C' }
    const settings = { ...options, env, timeout: TIMEOUT_MS, maxBuffer: OUTPUT_LIMIT, killSignal: 'SIGKILL' as const }
    execFile(program, [...args], settings, (error, stdout, stderr) => {
      if (error === null) resolve(stdout)
      else reject(failure(program, args, error, `${stderr}${stdout}`))
    })
  })

function failure(program: string, args: readonly string[], error: unknown, said: string): CloudAppError {
  const { code, killed } = error as { code?: string | number; killed?: boolean }
  if (code === 'ENOENT') {
    const name = PACKAGES[program]
    const fix = name === undefined ? '' : `: on Debian, apt-get install ${name}`
    return new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', `${program} is not installed${fix}`, { cause: error })
  }
  if (code === 'ERR_CHILD_PROCESS_STDIO_MAXBUFFER') {
    return new CloudAppError('ERR_CLOUDAPP_LIMIT', `${program} gave more than ${OUTPUT_LIMIT} bytes`, { cause: error })
  }
  if (killed === true) {
    return new CloudAppError('ERR_CLOUDAPP_TIMEOUT', `${program} took longer than ${TIMEOUT_MS} ms`, { cause: error })
  }
  const what = [program, ...args].join(' ').slice(0, 200)
  const why = said.trim().split('\n').slice(-4).join('; ').slice(0, 600)
  return new CloudAppError('ERR_CLOUDAPP_SOURCE', `'${what}' failed (${String(code)}): ${why}`, { cause: error })
}
