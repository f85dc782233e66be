import { readAudit, verifyAudit } from '../../broker/audit/verify.js'
import { loadPublicKey } from '../../capabilities/key-files.js'
import { CloudAppError } from '../../errors.js'
import { apiActivity } from '../../service/ocsf/api-activity.js'
import { auditedOperation } from '../audit-event.js'
import { filterFrom, filterOptions } from '../audit-filter.js'
import type { Command } from '../command.js'

export const command: Command = {
  summary: 'Write the records of an audit log as OCSF 1.8 API Activity events, one JSON object a line',
  help: [
    "An event's uid is the hash of its record. With --broker-key the log is verified first, and nothing is written of one that",
    'is not sound; without, nothing is checked.',
  ].join('\n'),
  options: {
    'broker-key': { type: 'string', value: 'KEY', help: "the broker's public key: a file or ed25519:…" },
    ...filterOptions,
  },
  positionals: [{ name: 'LOG', help: 'the audit log', required: true }],
  async run({ args, out, signal }) {
    const log = args.positionals[0] ?? ''
    const named = args.text('broker-key')
    const broker = named === undefined ? undefined : await loadPublicKey(named)
    if (broker !== undefined) {
      const { ok, faults } = await verifyAudit(log, { brokerKey: broker })
      const [fault] = faults
      if (!ok) throw new CloudAppError('ERR_CLOUDAPP_AUDIT', `the audit log ${log} is not sound: ${fault?.message}`)
    }
    const wanted = filterFrom(args)
    for await (const record of readAudit(log)) {
      signal.throwIfAborted()
      if (wanted(record)) await out.item(apiActivity(auditedOperation(record, broker)))
    }
    return 0
  },
}
