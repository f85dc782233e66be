import type { FindingGap } from '../../service/client-streams.js'
import type { DetectionFinding } from '../../service/ocsf/types.js'
import { findingsTable } from '../../service/table.js'
import { integerOf } from '../arguments.js'
import type { Command } from '../command.js'
import { connectSd, filterOf, filterOptions, sdOptions } from '../sd-options.js'

export const command: Command = {
  summary: "List a service domain's findings about your VMs",
  help: 'With --json the document is an array of OCSF 1.8 Detection Finding objects.',
  options: {
    ...sdOptions,
    ...filterOptions,
    limit: { type: 'string', value: 'N', help: 'at most N (default 1000)' },
  },
  json: true,
  async run({ args, out, signal }) {
    const filter = filterOf(args)
    const limit = integerOf('limit', args.text('limit') ?? '1000', 1_000_000)
    await using client = await connectSd(args, { signal, reconnectMs: 0, name: 'cloudapp findings list' })
    const findings: DetectionFinding[] = []
    const onGap = ({ count, exact }: FindingGap) => {
      out.note(`${exact ? '' : 'at least '}${count} findings after the cursor were removed for their age or number`)
    }
    for await (const { finding } of client.findings.list({ ...filter, limit, signal, onGap })) findings.push(finding)
    if (out.isJson) out.json(findings)
    else if (findings.length === 0) out.note('no findings')
    else {
      const { columns: width = 120, isTTY: color = false } = process.stdout
      out.line(findingsTable(findings, { width, color }).trimEnd())
    }
    if (!out.isJson && findings.length === limit && limit > 0) out.note(`only the first ${limit}: --limit takes more`)
    return 0
  },
}
