import { setTimeout as sleep } from 'node:timers/promises'
import type { KeyPair } from '../../capabilities/keys.js'
import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import type { Channel } from '../../transport/channel.js'
import { opener } from '../client.js'
import type { Endpoint } from '../discover.js'
import { Breach, type Check, type CheckResult, Skip, Subject } from './check.js'
import { FINDING_CHECKS } from './findings.js'
import { FRAME_CHECKS } from './frames.js'
import { OPENING_CHECKS } from './opening.js'
import { STREAM_CHECKS } from './streams.js'

export interface ConformOptions {
  /** A pass to ask with; otherwise as who the transport says. */
  readonly pass?: string
  /** A customer's key to ask with, instead of a pass. A TLS endpoint needs a key, a customer's or any other. */
  readonly key?: KeyPair
  /** Asks for scans too, which makes the service domain look at VMs. */
  readonly run?: boolean
  /** Acknowledges a finding too, which changes it. */
  readonly acknowledge?: boolean
  /** Only checks whose name begins so; one at least. */
  readonly only?: string
  /** Told of each result as it is there. */
  readonly onResult?: (result: CheckResult) => void
  readonly signal?: AbortSignal
}

/** Milliseconds for one check. */
const DEADLINE = 30_000

/** Every check, in the order of docs/interface.md. */
export const CHECKS: readonly Check[] = [...OPENING_CHECKS, ...FINDING_CHECKS, ...STREAM_CHECKS, ...FRAME_CHECKS]

/**
 * Checks that a service domain, in whatever language it is written, speaks the standard interface. It is asked as any client
 * asks, and as a hostile one; nothing is changed unless `run` or `acknowledge` allow it. What needs findings is skipped
 * where there are none: let it have some.
 *
 * @throws CloudAppError what connecting throws, if it can not be reached at all; `ERR_CLOUDAPP_ABORTED`;
 *   `ERR_CLOUDAPP_INVALID_ARGUMENT` if `only` leaves no check
 */
export async function conform(
  endpoint: Endpoint | string | (() => Promise<Channel>),
  options: ConformOptions = {},
): Promise<CheckResult[]> {
  checkOptions('conform', options, ['pass', 'key', 'run', 'acknowledge', 'only', 'onResult', 'signal'])
  const { signal, only = '', onResult, pass, key } = options
  const checks = CHECKS.filter(({ name }) => name.startsWith(only))
  if (checks.length === 0) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `conform: no check's name begins with '${only}'`)
  }
  const connect = opener(endpoint, key)
  await (await connect(signal)).close()
  const results: CheckResult[] = []
  for (const check of checks) {
    if (signal?.aborted) throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'The checks were given up')
    const { name, what, allow } = check
    const result: CheckResult =
      allow !== undefined && options[allow] !== true
        ? { name, what, outcome: 'skipped', why: `not allowed: ${allow}` }
        : { name, what, ...(await runCheck(check, new Subject(() => connect(signal), { pass, key }))) }
    results.push(result)
    onResult?.(result)
  }
  return results
}

/** Runs one check and ends what it opened. */
export async function runCheck(
  check: Check,
  subject: Subject,
  deadline = DEADLINE,
): Promise<Pick<CheckResult, 'outcome' | 'why'>> {
  const done = new AbortController()
  const late = sleep(deadline, 'late', { signal: done.signal }).catch(() => 'done')
  try {
    const work = check.run(subject)
    if ((await Promise.race([work.then(() => 'done'), late])) === 'late') {
      work.catch(() => undefined)
      return { outcome: 'failed', why: `no end within ${deadline / 1000} s` }
    }
    return { outcome: 'passed' }
  } catch (error) {
    if (error instanceof Skip) return { outcome: 'skipped', why: error.message }
    // A breach, or an answer of the service domain that the check did not reckon with.
    if (error instanceof Breach) return { outcome: 'failed', why: error.message }
    if (CloudAppError.is(error)) return { outcome: 'failed', why: `${error.code}: ${error.message}` }
    return { outcome: 'failed', why: String(error) }
  } finally {
    done.abort()
    await subject.end()
  }
}
