import { spawn } from 'node:child_process'
import { CloudAppError } from '../../errors.js'
import { findEventAgent } from '../../native/find.js'
import type { RecoveredVm } from './recovered.js'

/** ms a recovery may take, of one domain and of all: it waits until every vCPU has run. */
const LIMIT = 60_000
const LIMIT_OF_ALL = 300_000
/** Bytes of what it says that are kept. */
const WORDS = 1024 * 1024

/**
 * Runs the agent to undo what agents left that were killed.
 *
 * @param args the domain's number; all domains without
 * @returns what it printed
 * @throws CloudAppError `ERR_CLOUDAPP_SOURCE`
 */
export async function runRecovery(args: readonly string[]): Promise<string> {
  const stdio: ['ignore', 'pipe', 'pipe'] = ['ignore', 'pipe', 'pipe']
  const child = spawn(findEventAgent(), [...args, '--recover'], { stdio, env: {}, cwd: '/', detached: true })
  const said = ['', '']
  for (const [i, stream] of [child.stdout, child.stderr].entries()) {
    stream.on('data', (bytes: Buffer) => {
      said[i] = (said[i] + bytes.toString('latin1')).slice(0, WORDS)
    })
  }
  const limit = setTimeout(() => child.kill('SIGKILL'), args.length === 0 ? LIMIT_OF_ALL : LIMIT)
  const how = await new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(error.message))
    child.once('close', (code, signal) => resolve(code === 0 ? '' : (signal ?? `status ${code}`)))
  })
  clearTimeout(limit)
  const [printed = '', complaint = ''] = said
  if (how === '') return printed
  const why = complaint.trim().replaceAll('\n', '; ')
  throw new CloudAppError(
    'ERR_CLOUDAPP_SOURCE',
    `the event agent could not recover (${how})${why === '' ? '' : `: ${why}`}`,
  )
}

/** What agents left in all domains that were killed with their clients; undone. @throws as {@link runRecovery} */
export async function recoverXen(): Promise<RecoveredVm[]> {
  const lines = (await runRecovery([])).split('\n').filter((line) => line !== '')
  return lines.map((line) => {
    const [domid = 0, breakpoints = 0, monitor = 0, pauses = 0] = line.split(' ').map(Number)
    return { source: `xen:${domid}`, breakpoints, events: monitor !== 0, pauses }
  })
}
