/** What a command's option looks like on the command line and in its help. */
export interface OptionSpec {
  readonly type: 'string' | 'boolean'
  /** Placeholder of the value in the help text. */
  readonly value?: string
  readonly help: string
  readonly required?: boolean
  readonly multiple?: boolean
}

export interface PositionalSpec {
  readonly name: string
  readonly help: string
  readonly required?: boolean
}

/** The parsed command line of one call. */
export interface Arguments {
  /** The value of a string option, or undefined. */
  text(name: string): string | undefined
  /** The value of a required string option. */
  need(name: string): string
  /** Every value of an option that may be repeated. */
  all(name: string): readonly string[]
  flag(name: string): boolean
  readonly positionals: readonly string[]
}

/** Where a command writes. With `--json` it calls `json` once and nothing else reaches stdout. */
export interface Output {
  readonly isJson: boolean
  /** The one document; bigints become `0x…` strings. */
  json(document: unknown): void
  /** A document on a line of its own, for what goes on: any number of them instead of one. */
  jsonLine(document: unknown): void
  line(text?: string): void
  /** One of many documents, each a line of JSON (NDJSON), for commands without `--json`; waits for a reader who is behind. */
  item(document: unknown): Promise<void>
  table(columns: readonly Column[], rows: readonly (readonly Cell[])[]): void
  /** To stderr: progress and remarks that are no result. */
  note(text: string): void
}

export type Cell = string | number | bigint | boolean | undefined

export interface Column {
  readonly title: string
  readonly right?: boolean
}

/** What a command is given: its arguments, where to write, and a signal that ends it (SIGINT, SIGTERM). */
export interface Invocation {
  readonly args: Arguments
  readonly out: Output
  readonly signal: AbortSignal
}

export interface Command {
  readonly summary: string
  /** Further lines of the help text. */
  readonly help?: string
  readonly options: Readonly<Record<string, OptionSpec>>
  readonly positionals?: readonly PositionalSpec[]
  /** True if it has a `--json` form. */
  readonly json?: boolean
  /** The exit code: 0 ok, 1 failure. Errors are thrown. */
  run(invocation: Invocation): Promise<number>
}

/** A mistake on the command line; exit code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}
