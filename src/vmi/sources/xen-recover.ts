import { spawn } from 'node:child_process'
import { CloudAppError } from '../../errors.js'
import { findEventAgent } from '../../native/find.js'

/** ms a recovery may take, of one domain and of all: it waits until every vCPU has run. */
const LIMIT = 60_000
const LIMIT_OF_ALL = 300_000
/** Bytes of what it says that are kept. */
const WORDS = 1024 * 1024

/** What was undone in a domain. */
export interface RecoveredDomain {
  readonly domid: number
  /** Breakpoints taken out of its memory. */
  readonly breakpoints: number
  /** True if its events were still trapped, with vCPUs that waited for an answer. */
  readonly events: boolean
  /** Pauses that nobody was left to end. */
  readonly pauses: number
}

/** What was undone in a domain, in words. */
export function toldOf({ domid, breakpoints, events, pauses }: RecoveredDomain): string {
  const count = (number: number, what: string) => (number === 0 ? [] : [`${number} ${what}${number === 1 ? '' : 's'}`])
  const undone = [...count(breakpoints, 'breakpoint'), ...(events ? ['trapped events'] : []), ...count(pauses, 'pause')]
  return `domain ${domid}: undid ${undone.join(', ')} that killed processes left`
}

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

/**
 * Undoes in every Xen domain of this host what was left by processes that were all killed at once, this library's users and
 * their event agents: the guest's own bytes come back, vCPUs get their answers, pauses end. What living processes do is left
 * alone. An agent that is started later does the same for its domain; this is for who must not wait for one, as a broker that
 * is started again. Without Xen, and where nothing was left, it does nothing.
 *
 * @returns the domains in which something was undone
 * @throws CloudAppError `ERR_CLOUDAPP_SOURCE` if that failed for a domain, after all others were done;
 *   `ERR_CLOUDAPP_NATIVE` without the event agent
 */
export async function recoverXen(): Promise<RecoveredDomain[]> {
  const lines = (await runRecovery([])).split('\n').filter((line) => line !== '')
  return lines.map((line) => {
    const [domid = 0, breakpoints = 0, monitor = 0, pauses = 0] = line.split(' ').map(Number)
    return { domid, breakpoints, events: monitor !== 0, pauses }
  })
}
