import { loadKey } from '../capabilities/key-files.js'
import { type FindingFilter, SdClient } from '../service/client.js'
import { type FindingStatus, SEVERITIES, type Severity, STATUSES } from '../service/vocabulary.js'
import { type Arguments, type OptionSpec, UsageError } from './command.js'
import { readTextFile } from './files.js'

const statuses = Object.keys(STATUSES) as FindingStatus[]

/** How a command reaches a service domain, and as whom. */
export const sdOptions = {
  endpoint: {
    type: 'string',
    value: 'ENDPOINT',
    required: true,
    help: 'the service domain: a unix socket, vchan:NAME or tls:…',
  },
  key: { type: 'string', value: 'FILE', help: 'ask as a customer: the private key that owns the VMs' },
  pass: { type: 'string', value: 'FILE', help: 'ask as a customer: a file with a pass (cloudapp pass)' },
} satisfies Record<string, OptionSpec>

/** Which findings. */
export const filterOptions = {
  'min-severity': { type: 'string', value: 'WORD', help: `only this and worse: ${SEVERITIES.join(', ')}` },
  status: { type: 'string', value: 'WORD', multiple: true, help: `only this: ${statuses.join(', ')}` },
  vm: { type: 'string', value: 'NAME', help: 'only about this VM, by name or uuid' },
  since: { type: 'string', value: 'CURSOR', help: 'only what changed after this cursor' },
} satisfies Record<string, OptionSpec>

/** Connects as {@link sdOptions} say. */
export async function connectSd(
  args: Arguments,
  options: { readonly name: string; readonly signal: AbortSignal; readonly reconnectMs?: number },
): Promise<SdClient> {
  const [key, pass] = [args.text('key'), args.text('pass')]
  if (key !== undefined && pass !== undefined) throw new UsageError('--key and --pass: give one of them')
  return SdClient.connect(args.need('endpoint'), {
    ...options,
    ...(key !== undefined && { key: await loadKey(key) }),
    ...(pass !== undefined && { pass: (await readTextFile(pass, 4096, 'the pass')).trim() }),
  })
}

/** @throws UsageError for a word that is none. */
export function filterOf(args: Arguments): FindingFilter {
  const minSeverity = oneOf('min-severity', args.text('min-severity'), SEVERITIES)
  const status = args.all('status').map((word) => oneOf('status', word, statuses) as FindingStatus)
  const [vm, since] = [args.text('vm'), args.text('since')]
  return {
    ...(minSeverity && { minSeverity: minSeverity as Severity }),
    ...(status.length > 0 && { status }),
    ...(vm !== undefined && { vm }),
    ...(since !== undefined && { since }),
  }
}

function oneOf<T extends string>(option: string, word: string | undefined, known: readonly T[]): T | undefined {
  if (word === undefined || known.includes(word as T)) return word as T | undefined
  throw new UsageError(`--${option} is one of ${known.join(', ')}, not '${word}'`)
}
