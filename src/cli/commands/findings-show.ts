import { open, rm } from 'node:fs/promises'
import { CloudAppError } from '../../errors.js'
import type { SdClient } from '../../service/client.js'
import type { DetectionFinding } from '../../service/ocsf/types.js'
import { escapeText } from '../../service/table.js'
import { type Command, type Output, UsageError } from '../command.js'
import { findingUid } from '../finding-uid.js'
import { toJson } from '../output.js'
import { connectSd, sdOptions } from '../sd-options.js'

export const command: Command = {
  summary: 'Show one finding with its evidence',
  help: 'With --json the document is the OCSF 1.8 Detection Finding. --artifact saves evidence that lies beside it.',
  options: {
    ...sdOptions,
    acknowledge: { type: 'boolean', help: 'mark it as seen' },
    comment: { type: 'string', value: 'TEXT', help: 'what to say with --acknowledge' },
    artifact: { type: 'string', value: 'DIGEST', help: 'save this artifact, to --out' },
    out: { type: 'string', value: 'FILE', help: 'a new file for the artifact' },
  },
  positionals: [{ name: 'UID', help: 'uid of the finding, or the end or beginning of it', required: true }],
  json: true,
  async run({ args, out, signal }) {
    const [artifact, file, comment] = [args.text('artifact'), args.text('out'), args.text('comment')]
    if ((artifact === undefined) !== (file === undefined))
      throw new UsageError('--artifact DIGEST goes with --out FILE')
    if (comment !== undefined && !args.flag('acknowledge')) throw new UsageError('--comment goes with --acknowledge')
    await using client = await connectSd(args, { signal, reconnectMs: 0, name: 'cloudapp findings show' })
    const uid = await findingUid(client, args.positionals[0] ?? '', signal)
    if (artifact !== undefined && file !== undefined) {
      const bytes = await save(client, uid, artifact, file, signal)
      if (out.isJson) out.json({ file, bytes, digest: artifact })
      else out.line(`${file}: ${bytes} bytes`)
      return 0
    }
    const { finding } = args.flag('acknowledge')
      ? await client.findings.acknowledge(uid, { signal, ...(comment !== undefined && { comment }) })
      : await client.findings.get(uid, { signal })
    if (out.isJson) out.json(finding)
    else show(finding, out)
    return 0
  },
}

function show(finding: DetectionFinding, out: Output): void {
  const { finding_info: info, unmapped, evidences = [] } = finding
  const { cloudapp } = unmapped
  const at = (time: number) => new Date(time).toISOString()
  const seen = cloudapp.acknowledged
  const rows: [string, string | undefined][] = [
    ['uid', info.uid],
    ['severity', finding.severity],
    ['confidence', finding.confidence],
    ['status', finding.status],
    ['seen', seen && `${at(seen.at)} by ${seen.by}${seen.comment === undefined ? '' : `: ${seen.comment}`}`],
    ['VM', finding.resources.map(({ name, uid }) => `${name ?? ''} (${uid})`).join(', ')],
    ['first, last', `${at(info.first_seen_time)}, ${at(info.last_seen_time)}; ${finding.count} times`],
    ['looked by', cloudapp.right && `${cloudapp.right}${cloudapp.block ? `, block ${cloudapp.block}` : ''}`],
    ['types', info.types?.join(', ')],
    ['remedy', finding.remediation?.desc],
    ...(cloudapp.cut ?? []).map((cut): [string, string] => ['cut short', cut]),
  ]
  out.line(escapeText(info.title))
  if (info.desc !== undefined) out.line(`\n${escapeText(info.desc)}`)
  out.line()
  for (const [name, value] of rows) if (value) out.line(`  ${name.padEnd(12)} ${escapeText(value)}`)
  for (const [index, evidence] of evidences.entries()) {
    out.line(`\n  evidence ${index + 1}${evidence.name === undefined ? '' : `: ${escapeText(evidence.name)}`}`)
    const { name: _, ...rest } = evidence
    for (const line of toJson(rest).split('\n')) out.line(`    ${line}`)
  }
  for (const { name, type, bytes, digest, truncated } of cloudapp.artifacts ?? []) {
    const size = `${bytes} bytes${truncated ? ', the first of more' : ''}`
    out.line(`\n  artifact ${escapeText(name)} (${escapeText(type)}, ${size})\n    --artifact ${digest}`)
  }
}

async function save(client: SdClient, uid: string, digest: string, path: string, signal: AbortSignal): Promise<number> {
  let file: Awaited<ReturnType<typeof open>>
  try {
    file = await open(path, 'wx', 0o600)
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    const why = code === 'EEXIST' ? 'exists already and is not overwritten' : `can not be written (${code})`
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${path} ${why}`, { cause })
  }
  try {
    let bytes = 0
    for await (const part of client.artifacts.read(uid, digest, { signal })) {
      await file.appendFile(part)
      bytes += part.length
    }
    return bytes
  } catch (error) {
    // Bytes that were not checked to the end are not evidence.
    await rm(path, { force: true })
    throw error
  } finally {
    await file.close()
  }
}
