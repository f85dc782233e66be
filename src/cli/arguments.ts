import { parseArgs } from 'node:util'
import { nearest } from '../options.js'
import { type Arguments, type Command, type OptionSpec, UsageError } from './command.js'

const common: Readonly<Record<string, OptionSpec>> = {
  help: { type: 'boolean', help: 'show this help' },
}

/** The options of a command with those every command has. */
export function optionsOf(command: Command): Readonly<Record<string, OptionSpec>> {
  const json: Record<string, OptionSpec> = command.json
    ? { json: { type: 'boolean', help: 'print one JSON document' } }
    : {}
  return { ...command.options, ...json, ...common }
}

/**
 * Parses a command's own arguments.
 * @throws UsageError for an unknown option (naming the nearest), a missing value, a missing or surplus argument.
 */
export function parse(name: string, command: Command, argv: readonly string[]): Arguments {
  const specs = optionsOf(command)
  const { tokens } = parseArgs({
    args: [...argv],
    options: Object.fromEntries(Object.entries(specs).map(([key, spec]) => [key, { type: spec.type }])),
    strict: false,
    allowPositionals: true,
    tokens: true,
  })
  const values = new Map<string, string[]>()
  const positionals: string[] = []
  for (const token of tokens) {
    if (token.kind === 'positional') positionals.push(token.value)
    if (token.kind !== 'option') continue
    const spec = Object.hasOwn(specs, token.name) ? specs[token.name] : undefined
    if (spec === undefined) throw unknownOption(name, token.rawName, Object.keys(specs))
    if (spec.type === 'boolean' && token.value !== undefined) {
      throw new UsageError(`cloudapp ${name}: --${token.name} takes no value`)
    }
    if (spec.type === 'string' && token.value === undefined) {
      throw new UsageError(`cloudapp ${name}: --${token.name} needs a value: --${token.name} ${spec.value ?? 'VALUE'}`)
    }
    const earlier = values.get(token.name)
    if (earlier !== undefined && !spec.multiple && spec.type === 'string') {
      throw new UsageError(`cloudapp ${name}: --${token.name} is given twice`)
    }
    values.set(token.name, [...(earlier ?? []), token.value ?? ''])
  }
  if (!values.has('help')) checkPresence(name, command, values, positionals)
  return {
    text: (key) => values.get(key)?.[0],
    need: (key) => values.get(key)?.[0] ?? '',
    all: (key) => values.get(key) ?? [],
    flag: (key) => values.has(key),
    positionals,
  }
}

function checkPresence(
  name: string,
  command: Command,
  values: ReadonlyMap<string, unknown>,
  positionals: readonly string[],
): void {
  for (const [key, spec] of Object.entries(command.options)) {
    if (spec.required && !values.has(key)) {
      throw new UsageError(`cloudapp ${name}: --${key} ${spec.value ?? 'VALUE'} is missing: ${spec.help}`)
    }
  }
  const wanted = command.positionals ?? []
  const missing = wanted.find((spec, i) => spec.required && positionals[i] === undefined)
  if (missing) throw new UsageError(`cloudapp ${name}: ${missing.name} is missing: ${missing.help}`)
  if (positionals.length > wanted.length) {
    throw new UsageError(`cloudapp ${name}: unexpected argument '${positionals[wanted.length]}'`)
  }
}

function unknownOption(name: string, given: string, known: readonly string[]): UsageError {
  const guess = nearest(given.replace(/^-+/, ''), known)
  const hint = guess === undefined ? `see cloudapp ${name} --help` : `did you mean --${guess}?`
  return new UsageError(`cloudapp ${name}: unknown option ${given}; ${hint}`)
}

/** A non-negative integer, decimal or 0x… . */
export function integerOf(option: string, text: string, max = Number.MAX_SAFE_INTEGER): number {
  const value = addressOf(option, text)
  if (value > BigInt(max)) throw new UsageError(`--${option} is at most ${max}, not ${text}`)
  return Number(value)
}

/** An address or length as a bigint, decimal or 0x…; underscores between digits are ignored. */
export function addressOf(option: string, text: string): bigint {
  const bare = text.replace(/(?<=[0-9a-f])_(?=[0-9a-f])/gi, '')
  if (!/^(0x[0-9a-f]{1,16}|[0-9]{1,20})$/i.test(bare)) {
    throw new UsageError(`--${option} needs a number such as 4096 or 0xffffffff81000000, not '${text}'`)
  }
  const value = BigInt(bare)
  if (value >= 1n << 64n) throw new UsageError(`--${option} is past 64 bits: ${text}`)
  return value
}
