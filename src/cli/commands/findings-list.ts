import { SdClient } from '../../service/client.js'
import type { DetectionFinding } from '../../service/ocsf/types.js'
import { findingsTable } from '../../service/table.js'
import { type FindingStatus, SEVERITIES, type Severity, STATUSES } from '../../service/vocabulary.js'
import { integerOf } from '../arguments.js'
import { type Command, UsageError } from '../command.js'

const statuses = Object.keys(STATUSES) as FindingStatus[]

export const command: Command = {
  summary: "List a service domain's findings about your VMs",
  help: 'With --json the document is an array of OCSF 1.8 Detection Finding objects.',
  options: {
    endpoint: { type: 'string', value: 'SOCKET', required: true, help: "the service domain's unix socket" },
    'min-severity': { type: 'string', value: 'WORD', help: `only this and worse: ${SEVERITIES.join(', ')}` },
    status: { type: 'string', value: 'WORD', multiple: true, help: `only this: ${statuses.join(', ')}` },
    vm: { type: 'string', value: 'NAME', help: 'only about this VM, by name or uuid' },
    limit: { type: 'string', value: 'N', help: 'at most N (default 1000)' },
  },
  json: true,
  async run({ args, out, signal }) {
    const minSeverity = oneOf('min-severity', args.text('min-severity'), SEVERITIES)
    const status = args.all('status').map((word) => oneOf('status', word, statuses) as FindingStatus)
    const vm = args.text('vm')
    const client = await SdClient.connect(args.need('endpoint'), {
      signal,
      reconnectMs: 0,
      name: 'cloudapp findings list',
    })
    try {
      const findings: DetectionFinding[] = []
      const options = {
        limit: integerOf('limit', args.text('limit') ?? '1000', 1_000_000),
        signal,
        ...(minSeverity && { minSeverity: minSeverity as Severity }),
        ...(status.length > 0 && { status }),
        ...(vm !== undefined && { vm }),
      }
      for await (const { finding } of client.findings.list(options)) findings.push(finding)
      if (out.isJson) out.json(findings)
      else {
        const { columns: width = 120, isTTY: color = false } = process.stdout
        out.line(findingsTable(findings, { width, color }).trimEnd())
      }
      return 0
    } finally {
      await client.close()
    }
  },
}

function oneOf<T extends string>(option: string, word: string | undefined, known: readonly T[]): T | undefined {
  if (word === undefined || known.includes(word as T)) return word as T | undefined
  throw new UsageError(`--${option} is one of ${known.join(', ')}, not '${word}'`)
}
