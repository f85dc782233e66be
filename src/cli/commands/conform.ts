import { loadKey } from '../../capabilities/key-files.js'
import type { CheckResult } from '../../service/conform/check.js'
import { CHECKS, conform } from '../../service/conform/conform.js'
import { type Command, UsageError } from '../command.js'
import { readTextFile } from '../files.js'
import { printable } from '../output.js'

export const command: Command = {
  summary: 'Check that a service domain speaks the standard interface',
  help: [
    'For authors of service domains in any language: every rule of docs/interface.md that can be seen from outside, asked as a',
    'client and as a hostile one. Let it have findings of several severities about a VM you may ask about: what needs them is',
    'skipped otherwise. Nothing is changed unless --run or --acknowledge say so. Exit code 1 if a check failed.',
  ].join('\n'),
  options: {
    key: { type: 'string', value: 'FILE', help: 'ask as a customer: the private key; tls:… needs one' },
    pass: { type: 'string', value: 'FILE', help: 'ask as a customer: a file with a pass (cloudapp pass)' },
    run: { type: 'boolean', help: 'ask for scans too' },
    acknowledge: { type: 'boolean', help: 'acknowledge a finding too' },
    only: { type: 'string', value: 'NAME', help: 'only checks whose name begins so' },
  },
  positionals: [{ name: 'ENDPOINT', help: 'a unix socket, vchan:NAME or tls:…', required: true }],
  json: true,
  async run({ args, out, signal }) {
    const [key, pass, only] = [args.text('key'), args.text('pass'), args.text('only')]
    if (key !== undefined && pass !== undefined) throw new UsageError('--key and --pass: give one of them')
    if (only !== undefined && !CHECKS.some(({ name }) => name.startsWith(only))) {
      const names = [...new Set(CHECKS.map(({ name }) => name.split('.')[0]))]
      throw new UsageError(`--only ${only} leaves no check: their names begin with ${names.join(', ')}`)
    }
    const results = await conform(args.positionals[0] ?? '', {
      signal,
      run: args.flag('run'),
      acknowledge: args.flag('acknowledge'),
      onResult: (result) => tell(result, (line) => out.line(line)),
      ...(only !== undefined && { only }),
      ...(key !== undefined && { key: await loadKey(key) }),
      ...(pass !== undefined && { pass: (await readTextFile(pass, 4096, 'the pass')).trim() }),
    })
    const count = (outcome: CheckResult['outcome']) => results.filter((r) => r.outcome === outcome).length
    const totals = { passed: count('passed'), failed: count('failed'), skipped: count('skipped') }
    if (out.isJson) out.json({ ...totals, checks: results })
    else out.line(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped`)
    return totals.failed > 0 ? 1 : 0
  },
}

function tell({ name, what, outcome, why }: CheckResult, line: (text: string) => void): void {
  const mark = { passed: 'ok  ', failed: 'FAIL', skipped: 'skip' }[outcome]
  line(`${mark}  ${name.padEnd(24)}  ${what}`)
  if (why !== undefined) line(`      ${printable(why)}`)
}
