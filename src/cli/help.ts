import { optionsOf } from './arguments.js'
import type { Command } from './command.js'

/** The help text of one command. */
export function commandHelp(name: string, command: Command): string {
  const options = Object.entries(optionsOf(command))
  const shown = (key: string) => {
    const spec = optionsOf(command)[key]
    return spec?.type === 'string' ? `--${key} ${spec.value ?? 'VALUE'}` : `--${key}`
  }
  const required = options.filter(([, spec]) => spec.required).map(([key]) => shown(key))
  const positionals = (command.positionals ?? []).map((spec) => (spec.required ? spec.name : `[${spec.name}]`))
  const width = Math.max(
    ...options.map(([key]) => shown(key).length),
    ...(command.positionals ?? []).map((spec) => spec.name.length),
  )
  const lines = [
    `${command.summary}.`,
    '',
    `Usage: ${['cloudapp', name, ...required, ...positionals, '[options]'].join(' ')}`,
    '',
  ]
  for (const spec of command.positionals ?? []) lines.push(`  ${spec.name.padEnd(width)}  ${spec.help}`)
  for (const [key, spec] of options) {
    lines.push(`  ${shown(key).padEnd(width)}  ${spec.help}${spec.multiple ? ' (may be repeated)' : ''}`)
  }
  if (command.help) lines.push('', command.help)
  return lines.join('\n')
}

/** The overview: every command with its summary. */
export function overview(commands: readonly { readonly name: string; readonly summary: string }[]): string {
  const width = Math.max(...commands.map((command) => command.name.length))
  return [
    'cloudapp: delegate, look into and watch over virtual machines.',
    '',
    'Usage: cloudapp COMMAND [options]      cloudapp COMMAND --help',
    '',
    ...commands.map((command) => `  ${command.name.padEnd(width)}  ${command.summary}`),
    '',
    'Exit codes: 0 success, 1 failure (the message says what to do next), 2 wrong usage.',
  ].join('\n')
}
