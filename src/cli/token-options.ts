import { type Caveats, TRANSPORTS, type TransportName } from '../capabilities/caveats.js'
import { writeNewFile } from '../capabilities/files.js'
import { inspectToken } from '../capabilities/inspect.js'
import { type AddressRange, canonicalRanges } from '../capabilities/ranges.js'
import type { MemoryScope, ProcessScope } from '../capabilities/scope.js'
import { isoTime } from '../capabilities/time.js'
import { parseToken, tokenFromText, tokenToText } from '../capabilities/token.js'
import { addressOf, integerOf } from './arguments.js'
import { type Arguments, type Invocation, type OptionSpec, UsageError } from './command.js'
import { readTextFile } from './files.js'

/** Limits of a token that are one number each. */
const NUMBERS = {
  uses: ['uses', 'operations in all'],
  'output-bytes': ['outputBytes', 'bytes of guest data in all'],
  'bytes-per-second': ['bytesPerSecond', 'bytes of guest data a second'],
  'operations-per-second': ['operationsPerSecond', 'operations a second'],
  'pause-ms-per-minute': ['pauseMsPerMinute', 'milliseconds in each minute the VM may be held paused'],
} as const

const MEMORY = {
  'physical-memory': ['physical', 'guest-physical addresses'],
  'kernel-memory': ['kernel', "addresses in the kernel's address space"],
  'process-memory': ['process', 'addresses in processes'],
} as const

/** The options that narrow a token, in every command that makes one. */
export const caveatOptions: Readonly<Record<string, OptionSpec>> = {
  ...Object.fromEntries(
    Object.entries(NUMBERS).map(([name, [, help]]) => [
      name,
      { type: 'string', value: 'N', help: `at most N ${help}` },
    ]),
  ),
  process: {
    type: 'string',
    value: 'WHICH',
    multiple: true,
    help: 'only processes named NAME (name=nginx), in a cgroup (cgroup=/system.slice/x.service), or both with a comma',
  },
  ...Object.fromEntries(
    Object.entries(MEMORY).map(([name, [, help]]) => [
      name,
      { type: 'string', value: 'FIRST-LAST', multiple: true, help: `of memory only these ${help}, both included` },
    ]),
  ),
  syscalls: { type: 'string', value: 'LIST', help: 'only these system calls, by number' },
  transports: { type: 'string', value: 'LIST', help: `only over these: ${Object.keys(TRANSPORTS).join(', ')}` },
}

/** The caveats that the options state. @throws UsageError */
export function caveatsOf(args: Arguments): Omit<Caveats, 'notBefore' | 'expires' | 'audience'> {
  const out: Record<string, unknown> = {}
  for (const [name, [field]] of Object.entries(NUMBERS)) {
    const text = args.text(name)
    if (text !== undefined) out[field] = integerOf(name, text)
  }
  const processes = args.all('process').map(processOf)
  if (processes.length > 0) out.processes = processes
  const memory = memoryOf(args)
  if (memory !== undefined) out.memory = memory
  const syscalls = args.text('syscalls')
  if (syscalls !== undefined) {
    const numbers = syscalls.split(/[\s,]+/).filter((word) => word !== '')
    out.syscalls = [...new Set(numbers.map((word) => integerOf('syscalls', word)))].sort((a, b) => a - b)
  }
  const transports = args.text('transports')
  if (transports !== undefined)
    out.transports = transports
      .split(/[\s,]+/)
      .filter((word) => word !== '')
      .map(transportOf)
  return out
}

function memoryOf(args: Arguments): MemoryScope | undefined {
  const scope: { -readonly [K in keyof MemoryScope]: AddressRange[] } = {}
  for (const [name, [part]] of Object.entries(MEMORY)) {
    const ranges = args.all(name).map((text) => rangeOf(name, text))
    if (ranges.length > 0) scope[part] = canonicalRanges(ranges)
  }
  return Object.keys(scope).length === 0 ? undefined : scope
}

function rangeOf(option: string, text: string): AddressRange {
  const [first, last, more] = text.split('-')
  if (first === undefined || last === undefined || more !== undefined) {
    throw new UsageError(`--${option} needs FIRST-LAST, such as 0x1000-0x1fff, not '${text}'`)
  }
  const range = { first: addressOf(option, first), last: addressOf(option, last) }
  if (range.last < range.first) throw new UsageError(`--${option}: ${text} ends before it begins`)
  return range
}

function processOf(text: string): ProcessScope {
  const scope: { name?: string; cgroup?: string } = {}
  for (const part of text.split(',')) {
    const [key, ...rest] = part.split('=')
    const value = rest.join('=')
    if ((key !== 'name' && key !== 'cgroup') || value === '' || scope[key] !== undefined) {
      throw new UsageError(`--process needs name=NAME, cgroup=PATH or both with a comma, not '${text}'`)
    }
    scope[key] = value
  }
  return scope
}

function transportOf(word: string): TransportName {
  if (Object.hasOwn(TRANSPORTS, word)) return word as TransportName
  throw new UsageError(`--transports knows ${Object.keys(TRANSPORTS).join(', ')}, not '${word}'`)
}

/** A token given as its text or as a file that holds it. @throws CloudAppError */
export async function tokenArgument(args: Arguments): Promise<Uint8Array> {
  const given = args.positionals[0] ?? ''
  return tokenFromText(given.startsWith('cloudapp1.') ? given : await readTextFile(given, 64 * 1024, 'the token'))
}

export const tokenPositional = { name: 'TOKEN', help: 'the token, or a file that holds it', required: true } as const

export const outOption: OptionSpec = {
  type: 'string',
  value: 'FILE',
  help: 'write the token to a new file instead of printing it',
}

/** Prints a token that was made, or writes it to `--out`, and tells in words what it allows. */
export async function handOut({ args, out }: Invocation, token: Uint8Array): Promise<void> {
  const { words, blocks, grant } = inspectToken(token)
  const text = tokenToText(token)
  const blockId = blocks[blocks.length - 1]?.id
  const file = args.text('out')
  if (file !== undefined) await writeToken(file, text)
  if (out.isJson) {
    out.json({ blockId, expires: isoTime(grant.expires), words, ...(file === undefined ? { token: text } : { file }) })
    return
  }
  for (const sentence of words) out.note(sentence)
  out.note(`block ${blockId}`)
  out.line(file ?? text)
}

/** Writes a token to a new file with mode 0600. @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` */
export async function writeToken(file: string, token: string): Promise<void> {
  await writeNewFile(file, `${token}\n`, 0o600, 'the token was not handed out: the file')
}

/** A transport that a token may arrive on, if it names any: for a check that is not about how it came. */
export function arrivingTransport(token: Uint8Array): { transport?: TransportName } {
  const all = parseToken(token).blocks.map(({ narrowing }) => narrowing.transports)
  const named = all.flatMap((list) => list ?? [])
  const transport = named.find((name) => all.every((list) => list === undefined || list.includes(name)))
  return transport === undefined ? {} : { transport }
}
