import { headToText } from '../../broker/audit/head.js'
import { replaceFile } from '../../capabilities/files.js'
import type { Command } from '../command.js'
import { ownerOptions, withOwner } from '../owner.js'

export const command: Command = {
  summary: "Ask a broker for its signed word on its audit log's end",
  help: [
    'Keep it where the broker can not reach: `cloudapp audit verify --head FILE` then finds a log that was cut later.',
  ].join('\n'),
  options: { ...ownerOptions, out: { type: 'string', value: 'FILE', help: 'write the head to FILE' } },
  json: true,
  run: (invocation) =>
    withOwner(invocation, async (owner) => {
      const { args, out } = invocation
      const head = await owner.auditHead()
      const file = args.text('out')
      if (file !== undefined) await replaceFile(file, `${headToText(head)}\n`, 0o600)
      if (out.isJson || file === undefined) out.json(head)
      else out.line(file)
      return 0
    }),
}
