#!/usr/bin/env -S node --initial-heap-size=64
import { nearest } from '../options.js'
import { parse } from './arguments.js'
import { UsageError } from './command.js'
import { COMMANDS, type CommandEntry } from './commands.js'
import { errorDocument, explain } from './explain.js'
import { commandHelp, overview } from './help.js'
import { processOutput } from './output.js'
import { version } from './version.js'

/** Finds the longest command that `argv` begins with: `vmi tasks` before `vmi`. */
function find(argv: readonly string[]): { entry: CommandEntry; rest: readonly string[] } | undefined {
  for (const words of [2, 1]) {
    const entry = COMMANDS.find((command) => command.name === argv.slice(0, words).join(' '))
    if (entry) return { entry, rest: argv.slice(words) }
  }
  return undefined
}

function unknownCommand(argv: readonly string[]): UsageError {
  const [first = '', second] = argv
  const group = COMMANDS.filter((command) => command.name.startsWith(`${first} `))
  const subcommands = group.map((command) => command.name)
  if (subcommands.length > 0 && (second === undefined || second.startsWith('-'))) {
    return new UsageError(`cloudapp ${first}: which one? ${subcommands.map((name) => `'${name}'`).join(', ')}`)
  }
  const names = COMMANDS.map((command) => command.name)
  const given = second === undefined || second.startsWith('-') ? first : `${first} ${second}`
  const guess = nearest(given, subcommands.length > 0 ? subcommands : names) ?? nearest(first, names)
  const hint = guess === undefined ? "'cloudapp --help' lists the commands" : `did you mean 'cloudapp ${guess}'?`
  return new UsageError(`cloudapp: unknown command '${given}'; ${hint}`)
}

async function run(argv: readonly string[]): Promise<number> {
  const [first] = argv
  if (first === undefined || first === 'help' || first === '--help' || first === '-h') {
    const shown = first === 'help' && argv.length > 1 ? [...argv.slice(1), '--help'] : undefined
    if (shown) return run(shown)
    const text = overview(COMMANDS)
    if (first === undefined) throw new UsageError(text)
    process.stdout.write(`${text}\n`)
    return 0
  }
  if (first === '--version') {
    process.stdout.write(`${version()}\n`)
    return 0
  }
  const found = find(argv)
  if (!found) throw unknownCommand(argv)
  const { command } = await found.entry.load()
  const args = parse(found.entry.name, command, found.rest)
  if (args.flag('help')) {
    process.stdout.write(`${commandHelp(found.entry.name, command)}\n`)
    return 0
  }
  const ended = new AbortController()
  const end = () => ended.abort()
  process.once('SIGINT', end).once('SIGTERM', end)
  const out = processOutput(args.flag('json'))
  try {
    return await command.run({ args, out, signal: ended.signal })
  } catch (error) {
    if (out.isJson && !out.written && !(error instanceof UsageError)) out.json(errorDocument(error))
    throw error
  }
}

// Whoever reads has seen enough (`| head`): that is no failure of the command.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1))
try {
  process.exitCode = await run(process.argv.slice(2))
} catch (error) {
  const usage = error instanceof UsageError
  process.stderr.write(`${usage ? error.message : explain(error)}\n`)
  process.exitCode = usage ? 2 : 1
}
