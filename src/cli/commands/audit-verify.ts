import { parseHead } from '../../broker/audit/head.js'
import type { AuditHead } from '../../broker/audit/types.js'
import { verifyAudit } from '../../broker/audit/verify.js'
import { loadPublicKey } from '../../capabilities/key-files.js'
import type { Command } from '../command.js'
import { readTextFile } from '../files.js'

export const command: Command = {
  summary: "Check a broker's audit log: no record changed, removed, added or moved",
  help: [
    'Without --head a log whose end was cut off still verifies: give the last head you were handed.',
    'Exits 0 only if the log is sound.',
  ].join('\n'),
  options: {
    'broker-key': {
      type: 'string',
      value: 'KEY',
      required: true,
      help: "the broker's public key: a file or ed25519:…",
    },
    head: { type: 'string', value: 'FILE', help: 'a signed head that you were handed' },
    after: {
      type: 'string',
      value: 'FILE',
      help: 'the head before the first record here, where older segments were moved away',
    },
  },
  positionals: [{ name: 'LOG', help: 'the audit log', required: true }],
  json: true,
  async run({ args, out }) {
    const head = await headFrom(args.text('head'))
    const after = await headFrom(args.text('after'))
    const report = await verifyAudit(args.positionals[0] ?? '', {
      brokerKey: await loadPublicKey(args.need('broker-key')),
      ...(head && { head }),
      ...(after && { after }),
    })
    if (out.isJson) {
      out.json(report)
      return report.ok ? 0 : 1
    }
    for (const fault of report.faults) out.note(`${fault.file}:${fault.line}: ${fault.message}`)
    out.line(
      `${report.ok ? 'sound' : 'NOT SOUND'}: ${report.records} records, ${report.heads} signed heads, ${report.state}`,
    )
    if (report.unsigned > 0) out.line(`the last ${report.unsigned} records are not under a signed head yet`)
    if (report.ok && head === undefined) out.line('that nothing was cut off its end can only be told with --head')
    return report.ok ? 0 : 1
  },
}

async function headFrom(file: string | undefined): Promise<AuditHead | undefined> {
  return file === undefined ? undefined : parseHead(await readTextFile(file, 4096, 'the head'))
}
