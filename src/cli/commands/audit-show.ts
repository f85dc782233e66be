import type { AuditRecord } from '../../broker/audit/types.js'
import { readAudit } from '../../broker/audit/verify.js'
import { integerOf } from '../arguments.js'
import { filterFrom, filterOptions } from '../audit-filter.js'
import type { Command } from '../command.js'

export const command: Command = {
  summary: 'Show the records of an audit log, oldest first',
  help: 'Nothing is checked: `cloudapp audit verify` does that.',
  options: {
    last: { type: 'string', value: 'N', help: 'only the last N records that fit (default 1000)' },
    ...filterOptions,
  },
  positionals: [{ name: 'LOG', help: 'the audit log', required: true }],
  json: true,
  async run({ args, out, signal }) {
    const last = integerOf('last', args.text('last') ?? '1000', 1_000_000)
    const wanted = filterFrom(args)
    let records: AuditRecord[] = []
    for await (const record of readAudit(args.positionals[0] ?? '')) {
      signal.throwIfAborted()
      if (wanted(record)) records.push(record)
      // Let go of the old ones now and then, not at each record.
      if (records.length > 2 * last + 1024) records = records.slice(-last)
    }
    records = last === 0 ? [] : records.slice(-last)
    if (out.isJson) out.json(records)
    else {
      out.table(
        [
          { title: 'SEQ', right: true },
          { title: 'TIME' },
          { title: 'ACTION' },
          { title: 'OUTCOME' },
          { title: 'VM' },
          { title: 'RIGHT' },
          { title: 'SESSION' },
          { title: 'CODE' },
          { title: 'DETAILS' },
        ],
        records.map(({ seq, time, entry }) => [
          seq,
          time,
          entry.action,
          entry.outcome,
          entry.vm,
          entry.right,
          entry.session,
          entry.code,
          Object.entries(entry.details ?? {})
            .map(([name, value]) => `${name}=${value}`)
            .join(' '),
        ]),
      )
    }
    return 0
  },
}
