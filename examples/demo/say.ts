const started = Date.now()

export function say(text: string): void {
  process.stdout.write(`${text}\n`)
}

export function heading(text: string): void {
  say(`\n${text}`)
}

export function indent(text: string): void {
  say(`    ${text}`)
}

/** What a long step is doing. */
export function progress(text: string): void {
  say(`  … ${text} (${Math.round((Date.now() - started) / 1000)} s)`)
}

/** Says what was seen to be so; ends the demo if it is not. */
export function check(isSo: boolean, text: string, detail?: unknown): void {
  if (!isSo) throw new Error(`not so: ${text}\n${JSON.stringify(detail, undefined, 2) ?? ''}`)
  say(`  ✓ ${text}`)
}
