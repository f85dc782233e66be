interface Check {
  readonly name: string
  readonly status: string
  readonly found: string
  readonly fix?: string
}

interface Report {
  readonly checks: readonly Check[]
  readonly sources: readonly { kind: string; usable: boolean; why: string }[]
}

/** What Node runs in /app of dom0 or a guest. */
export const DOCTOR = ['node_modules/@cloudapp/sdk/dist/cli/main.js', 'doctor', '--json']

/** Its checks by name, and what it says of `xen:`. */
export function doctorOf(text: string): {
  check: (name: string) => Check | undefined
  xen: { usable: boolean; why: string }
} {
  const report: Report = JSON.parse(text)
  const source = report.sources.find(({ kind }) => kind === 'xen')
  if (source === undefined) throw new Error('no word about xen:')
  return { check: (name) => report.checks.find((check) => check.name === name), xen: source }
}
