import { CloudAppError } from '../../errors.js'
import { checkCount, checkName, checkObject, checkWord, malformed, tooLarge } from './check.js'
import { checkField, checkRegister, ExpressionCompiler, type Uses } from './expression.js'
import { EVENT_LIMITS, EVENT_REGISTERS, type EventProgram, type EventRegister, type Trap } from './program.js'

/** CA_EVENTS_VERSION, CA_CAPTURE_WORDS, CA_PROGRAM_ON_CHANGE and enum ca_trap of cloudapp_events.h. */
const VERSION = 1n
const CAPTURE_WORDS = 8
const ON_CHANGE = 1n
export const TRAPS = { register: 1, cpuid: 2, msr: 3, descriptor: 4, breakpoint: 5, 'guest-request': 6 } as const
const TRAP_KINDS = Object.keys(TRAPS) as Trap['kind'][]

/** enum ca_capture. */
const CAPTURE = { register: 1, field: 2, memory: 3, string: 4 } as const

/** Words of a record before its captures: enum ca_record. */
export const RECORD_WORDS = 6

/** Names of the columns every batch has. */
export const FIXED_COLUMNS = ['time', 'vcpu', 'serial', 'cr3', 'rip'] as const

/** Where a capture lies in a record. */
export interface CapturePlace {
  readonly name: string
  /** Of the first word, from the record's beginning. */
  readonly word: number
  /** Absent for a capture of one word: the bytes it has room for. */
  readonly bytes?: number
}

/** A program as the agent takes it, and how to read its records. */
export interface CompiledProgram {
  readonly trap: Trap
  readonly words: BigUint64Array<ArrayBuffer>
  readonly captures: readonly CapturePlace[]
  /** u64 words of a record, captures included. */
  readonly recordWords: number
  /** What it looks at beside cr3 and rip, which every event tells. */
  readonly uses: { readonly registers: readonly EventRegister[]; readonly memory: boolean }
}

/** Why a trap of this name is no trap here, for those a reader of the field would look for. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  'memory-access': 'Xen 4.17 has memory-access events (p2m access types) on Intel CPUs only',
  'single-step': 'Xen 4.17 has single-step events (the monitor trap flag) on Intel CPUs only',
}

/**
 * Checks a program, whoever wrote it, and compiles it to the table of cloudapp_events.h.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT`, `ERR_CLOUDAPP_UNKNOWN_OPTION` and `ERR_CLOUDAPP_LIMIT`, with the
 *   place in `details.place`; `ERR_CLOUDAPP_UNSUPPORTED` for a trap no host here has
 */
export function compileProgram(program: EventProgram): CompiledProgram {
  const { trap, predicate, captures, answer, rate } = checkObject('program', program, [
    'trap',
    'predicate',
    'captures',
    'answer',
    'rate',
  ])
  const head = compileTrap(trap)
  if (answer !== undefined && answer !== 'continue') throw malformed('program.answer', "can only be 'continue'")
  const most = rate === undefined ? 0 : checkCount('program.rate', rate, 1, 0xffff_ffff)
  const uses: Uses = { registers: new Set(), memory: false }
  const expression = new ExpressionCompiler(head.trap.kind, uses)
  if (predicate !== undefined) expression.compile('program.predicate', predicate)
  const captured = compileCaptures(captures, head.trap.kind, uses)
  const words = BigUint64Array.from([
    VERSION,
    BigInt(TRAPS[head.trap.kind]),
    head.argument,
    head.space,
    BigInt(expression.words.length / 2),
    BigInt(captured.places.length),
    BigInt(most),
    head.flags,
    ...expression.words,
    ...captured.words,
  ])
  for (const told of ['cr3', 'rip'] as const) uses.registers.delete(told)
  return {
    trap: head.trap,
    words,
    captures: captured.places,
    recordWords: captured.recordWords,
    uses: { registers: [...uses.registers], memory: uses.memory },
  }
}

function compileTrap(value: unknown): { trap: Trap; argument: bigint; space: bigint; flags: bigint } {
  const place = 'program.trap'
  const kind: unknown = (value as { readonly kind?: unknown } | null | undefined)?.kind
  const elsewhere = typeof kind === 'string' && Object.hasOwn(ELSEWHERE, kind) ? ELSEWHERE[kind] : undefined
  if (elsewhere !== undefined) throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', `${place}: ${elsewhere}`)
  checkName(`${place}.kind`, kind, TRAP_KINDS)
  const plain = { argument: 0n, space: 0n, flags: 0n }
  switch (kind as Trap['kind']) {
    case 'register': {
      const { register, changed } = checkObject(place, value, ['kind', 'register', 'changed'])
      const known = ['cr0', 'cr3', 'cr4'] as const
      const name = known[checkName(`${place}.register`, register, known)] as (typeof known)[number]
      if (changed !== undefined && typeof changed !== 'boolean')
        throw malformed(`${place}.changed`, 'must be a boolean')
      const trap: Trap = { kind: 'register', register: name, changed: changed === true }
      return { ...plain, trap, argument: BigInt(name.slice(2)), flags: changed === true ? ON_CHANGE : 0n }
    }
    case 'msr': {
      const { msr } = checkObject(place, value, ['kind', 'msr'])
      const number = checkCount(`${place}.msr`, msr, 0, 0xffff_ffff)
      return { ...plain, trap: { kind: 'msr', msr: number }, argument: BigInt(number) }
    }
    case 'breakpoint': {
      const { at, space } = checkObject(place, value, ['kind', 'at', 'space'])
      const trap = {
        kind: 'breakpoint',
        at: checkWord(`${place}.at`, at),
        space: checkWord(`${place}.space`, space),
      } as const
      return { ...plain, trap, argument: trap.at, space: trap.space }
    }
    default:
      checkObject(place, value, ['kind'])
      return { ...plain, trap: { kind } as Trap }
  }
}

function compileCaptures(
  value: unknown,
  trap: Trap['kind'],
  uses: Uses,
): { words: bigint[]; places: CapturePlace[]; recordWords: number } {
  const words: bigint[] = []
  const places: CapturePlace[] = []
  let recordWords = RECORD_WORDS
  if (value === undefined) return { words, places, recordWords }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw malformed('program.captures', 'must be an object of captures by name')
  }
  // In one order, whatever order a wire has brought the keys in: both ends must lay the columns out alike.
  const names = Object.keys(value).sort()
  if (names.length > EVENT_LIMITS.captures) throw tooLarge('program.captures', 'captures', EVENT_LIMITS.captures)
  for (const name of names) {
    // Names become properties: none may be one that means something to the language.
    if (!/^[a-z][A-Za-z0-9_]{0,31}$/.test(name)) {
      throw malformed('program.captures', `'${name.slice(0, 64)}' is no name: a small letter, then letters and digits`)
    }
    if ((FIXED_COLUMNS as readonly string[]).includes(name)) {
      throw malformed('program.captures', `every batch has a column '${name}' already`)
    }
    const place = `program.captures.${name}`
    const capture = compileCapture(place, (value as Record<string, unknown>)[name], trap, uses)
    words.push(...capture.words)
    places.push({ name, word: recordWords, ...(capture.bytes === undefined ? {} : { bytes: capture.bytes }) })
    recordWords += 1 + (capture.bytes === undefined ? 0 : Math.ceil(capture.bytes / 8))
  }
  return { words, places, recordWords }
}

function compileCapture(
  place: string,
  value: unknown,
  trap: Trap['kind'],
  uses: Uses,
): { words: bigint[]; bytes?: number } {
  const capture = checkObject(place, value, ['register', 'field', 'memory', 'string', 'bytes'])
  const kinds = (['register', 'field', 'memory', 'string'] as const).filter((kind) => kind in capture)
  const [kind] = kinds
  if (kind === undefined || kinds.length > 1) throw malformed(place, 'is one of register, field, memory or string')
  const table = new Array<bigint>(CAPTURE_WORDS).fill(0n)
  table[0] = BigInt(CAPTURE[kind])
  if (kind === 'register' || kind === 'field') {
    if ('bytes' in capture) throw malformed(`${place}.bytes`, `a ${kind} is one word`)
    const number =
      kind === 'register'
        ? checkRegister(`${place}.register`, capture.register, uses)
        : checkField(`${place}.field`, capture.field, trap)
    table[1] = BigInt(number)
    return { words: table }
  }
  const { register, path = [0] } = checkObject(`${place}.${kind}`, capture[kind], ['register', 'path'])
  // Not noted as looked at: what is told is the memory there, which is a right of its own.
  table[1] = BigInt(checkName(`${place}.${kind}.register`, register, EVENT_REGISTERS))
  const bytes = checkCount(`${place}.bytes`, capture.bytes, 1, EVENT_LIMITS.captureBytes)
  table[2] = BigInt(bytes)
  uses.memory = true
  if (!Array.isArray(path) || path.length === 0 || path.length > EVENT_LIMITS.path) {
    throw malformed(`${place}.${kind}.path`, `must be 1 to ${EVENT_LIMITS.path} offsets`)
  }
  table[3] = BigInt(path.length - 1)
  for (const [i, offset] of path.entries()) {
    if (!Number.isSafeInteger(offset)) throw malformed(`${place}.${kind}.path[${i}]`, 'must be a whole number')
    table[4 + i] = BigInt.asUintN(64, BigInt(offset as number))
  }
  return { words: table, bytes }
}
