import { createHash } from 'node:crypto'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import type { VmIdentity } from '../vmi/guest.js'
import type { ArtifactInput, ArtifactRef } from './artifacts/types.js'
import { boundText, Cuts, cutText, EvidenceBound, FINDING_LIMITS, wellFormed } from './bounds.js'
import type { Json, OcsfAnalytic, OcsfAttack, OcsfEvidence, OcsfProcess } from './ocsf/types.js'
import { caption } from './ocsf/validate.js'
import { bad, CONFIDENCES, type Confidence, type Severity, type SeverityId, severityId } from './vocabulary.js'

/** A VM as a finding is about it: an identity, or anything that has one (a delegation, a GuestVm). */
export type AboutVm = VmIdentity | { readonly identity: VmIdentity }

/** A process in evidence. */
export interface EvidenceProcess {
  readonly pid?: number
  readonly name?: string
  readonly cmdLine?: string
  readonly uid?: number | string
  readonly parent?: EvidenceProcess
}

/** One piece of evidence. `data` takes any plain data: bigint is written as `0x…`, bytes as hexadecimal. */
export interface EvidenceInput {
  readonly name?: string
  readonly process?: EvidenceProcess
  /** Path of a file in the VM. */
  readonly file?: string
  /** Name of a kernel module. */
  readonly module?: string
  readonly data?: unknown
}

/** What an author says when raising a finding. Text and evidence past {@link FINDING_LIMITS} is cut, and the cut is stated. */
export interface FindingInput {
  /** Deduplicates: an open finding about the same VM with the same key is updated. `id` if absent. */
  readonly key?: string
  /** The detector's name for the hit; the key if `key` is absent. */
  readonly id?: string
  readonly about: AboutVm
  /** The detector's name for this kind of hit; the first of the finding's `types`. */
  readonly kind?: string
  readonly title: string
  readonly severity: Severity
  readonly description?: string
  readonly evidence?: EvidenceInput | readonly EvidenceInput[]
  /** A word, or a score from 0 to 100. */
  readonly confidence?: Confidence | number
  /** Free classification, e.g. `rootkit`. */
  readonly types?: readonly string[]
  /** MITRE ATT&CK techniques. */
  readonly attacks?: readonly {
    readonly technique: string
    readonly name?: string
    readonly tactic?: string
    readonly tacticName?: string
  }[]
  readonly analytic?: {
    readonly name: string
    readonly type?: 'rule' | 'behavioral' | 'statistical' | 'learning' | 'fingerprinting'
    readonly version?: string
  }
  /** The right that allowed the look, and the id of the capability block (hexadecimal). */
  readonly right?: string
  readonly block?: string
  readonly remediation?: string
  /** Evidence too large for the finding: kept beside it, named in it by digest. At most 16 of one finding. */
  readonly artifacts?: readonly ArtifactInput[]
}

const INPUT_KEYS = [
  'key', 'id', 'kind', 'about', 'title', 'severity', 'description', 'evidence', 'confidence', 'types', 'attacks', 'analytic',
  'right', 'block', 'remediation', 'artifacts',
] as const // biome-ignore format: one table
const EVIDENCE_KEYS = ['name', 'process', 'file', 'module', 'data']
const ANALYTIC = { rule: 1, behavioral: 2, statistical: 3, learning: 4, fingerprinting: 5 } as const

/** A checked and bounded {@link FindingInput}: what stays the same over the changes of the finding's state. */
export interface FindingDraft {
  readonly key: string
  readonly vm: { readonly uuid: string; readonly name: string; readonly bootNonce?: string }
  readonly severity: SeverityId
  readonly title: string
  readonly description?: string
  readonly confidence?: { readonly id: 1 | 2 | 3; readonly score?: number }
  readonly evidences: readonly OcsfEvidence[]
  readonly types?: readonly string[]
  readonly attacks?: readonly OcsfAttack[]
  readonly analytic?: OcsfAnalytic
  readonly right?: string
  readonly block?: string
  readonly remediation?: string
  /** Those that are kept, already on disk. */
  readonly artifacts?: readonly ArtifactRef[]
  readonly cut?: readonly string[]
  /** Bytes of evidence before it was cut; present only if it was. */
  readonly untruncated?: number
}

/** Checks and bounds an author's words. Throws ERR_CLOUDAPP_INVALID_ARGUMENT or ERR_CLOUDAPP_UNKNOWN_OPTION on misuse. */
export function draftFinding(input: FindingInput): FindingDraft {
  checkOptions('findings.raise', input, INPUT_KEYS)
  const key = text(input.key ?? input.id, 'key')
  const title = text(input.title, 'title')
  const cuts = new Cuts()
  const bound = new EvidenceBound(cuts)
  const given = input.evidence === undefined ? [] : [input.evidence].flat()
  if (given.length > FINDING_LIMITS.evidences) cuts.add(`evidence: ${FINDING_LIMITS.evidences} of ${given.length}`)
  const evidences = given
    .slice(0, FINDING_LIMITS.evidences)
    .map((item, index) => evidenceOf(item as EvidenceInput, `evidence[${index}]`, cuts, bound))
  const types = [...(input.kind === undefined ? [] : [input.kind]), ...(input.types ?? [])]
  const label = (value: string, path: string) => boundText(text(value, path), FINDING_LIMITS.label, path, cuts)
  return {
    key: boundKey(key),
    vm: vmOf(input.about),
    severity: severityId(input.severity),
    title: boundText(title, FINDING_LIMITS.title, 'title', cuts),
    ...(input.description !== undefined && {
      description: boundText(text(input.description, 'description'), FINDING_LIMITS.description, 'description', cuts),
    }),
    ...(input.confidence !== undefined && { confidence: confidenceOf(input.confidence) }),
    evidences,
    ...(types.length > 0 && { types: bounded(types, 'types', cuts).map((item) => label(item, 'types')) }),
    ...(input.attacks && { attacks: bounded(input.attacks, 'attacks', cuts).map((item) => attackOf(item, label)) }),
    ...(input.analytic && {
      analytic: {
        name: label(input.analytic.name, 'analytic.name'),
        type_id: ANALYTIC[input.analytic.type ?? 'rule'] ?? misused('analytic.type', input.analytic.type),
        type: caption('analytic', 'type_id', ANALYTIC[input.analytic.type ?? 'rule']),
        ...(input.analytic.version !== undefined && { version: label(input.analytic.version, 'analytic.version') }),
      },
    }),
    ...(input.right !== undefined && { right: label(input.right, 'right') }),
    ...(input.block !== undefined && { block: label(input.block, 'block') }),
    ...(input.remediation !== undefined && {
      remediation: boundText(text(input.remediation, 'remediation'), FINDING_LIMITS.description, 'remediation', cuts),
    }),
    ...(cuts.any && { cut: cuts.list(), untruncated: bound.total }),
  }
}

function evidenceOf(item: EvidenceInput, path: string, cuts: Cuts, bound: EvidenceBound): OcsfEvidence {
  checkOptions(path, item, EVIDENCE_KEYS)
  let data = item.data === undefined ? undefined : bound.json(item.data, `${path}.data`)
  if (item.module !== undefined) {
    const module = {
      name: boundText(text(item.module, `${path}.module`), FINDING_LIMITS.label, `${path}.module`, cuts),
    }
    const plain = typeof data === 'object' && data !== null && !Array.isArray(data)
    data = plain
      ? { ...(data as { [name: string]: Json }), module }
      : { module, ...(data !== undefined && { value: data }) }
  }
  // OCSF wants at least one attribute beside the name.
  if (data === undefined && !item.process && item.file === undefined) data = {}
  return {
    ...(item.name !== undefined && {
      name: boundText(text(item.name, `${path}.name`), FINDING_LIMITS.title, path, cuts),
    }),
    ...(item.process && { process: processOf(item.process, `${path}.process`, cuts, 0) }),
    ...(item.file !== undefined && { file: fileOf(item.file, `${path}.file`, cuts) }),
    ...(data !== undefined && { data }),
  }
}

function processOf(input: EvidenceProcess, path: string, cuts: Cuts, depth: number): OcsfProcess {
  checkOptions(path, input, ['pid', 'name', 'cmdLine', 'uid', 'parent'])
  const pid = input.pid
  return {
    // A pid beyond 32 bits is no pid; a lying guest may still give one.
    ...(pid !== undefined && Number.isInteger(pid) && Math.abs(pid) <= 0x7fff_ffff && { pid }),
    ...(input.name !== undefined && {
      name: boundText(text(input.name, path), FINDING_LIMITS.label, `${path}.name`, cuts),
    }),
    ...(input.cmdLine !== undefined && {
      cmd_line: boundText(text(input.cmdLine, path), FINDING_LIMITS.evidenceText, `${path}.cmdLine`, cuts),
    }),
    ...(input.uid !== undefined && { user: { uid: cutText(String(input.uid), FINDING_LIMITS.label) } }),
    ...(input.parent && depth < 4 && { parent_process: processOf(input.parent, `${path}.parent`, cuts, depth + 1) }),
  }
}

function fileOf(
  input: string,
  path: string,
  cuts: Cuts,
): { name: string; path: string; type_id: number; type: string } {
  const full = boundText(text(input, path), FINDING_LIMITS.evidenceText, path, cuts)
  const name = full.slice(full.lastIndexOf('/') + 1)
  return { name, path: full, type_id: 0, type: caption('file', 'type_id', 0) }
}

function attackOf(
  input: NonNullable<FindingInput['attacks']>[number],
  label: (value: string, path: string) => string,
): OcsfAttack {
  checkOptions('attacks', input, ['technique', 'name', 'tactic', 'tacticName'])
  const named = (uid: string, name: string | undefined) => ({
    uid: label(uid, 'attacks'),
    ...(name !== undefined && { name: label(name, 'attacks') }),
  })
  return {
    technique: named(input.technique, input.name),
    ...(input.tactic !== undefined && { tactic: named(input.tactic, input.tacticName) }),
  }
}

function confidenceOf(value: Confidence | number): { id: 1 | 2 | 3; score?: number } {
  if (typeof value !== 'number') {
    if (!Object.hasOwn(CONFIDENCES, value)) throw bad('confidence', value, Object.keys(CONFIDENCES))
    return { id: CONFIDENCES[value] }
  }
  if (!(value >= 0 && value <= 100)) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `confidence must be a score from 0 to 100; got ${value}`)
  }
  return { id: value < 34 ? 1 : value < 67 ? 2 : 3, score: Math.round(value) }
}

/** The VM a finding is about. Throws ERR_CLOUDAPP_INVALID_ARGUMENT unless it has a name and a uuid. */
export function vmOf(about: AboutVm): FindingDraft['vm'] {
  const identity = typeof about === 'object' && about !== null && 'identity' in about ? about.identity : about
  const uuid: unknown = identity?.uuid
  if (typeof uuid !== 'string' || !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(uuid)) {
    throw new CloudAppError(
      'ERR_CLOUDAPP_INVALID_ARGUMENT',
      'about must be a VM: an identity with a uuid, or a delegation',
    )
  }
  return {
    uuid: uuid.toLowerCase(),
    name: cutText(wellFormed(text(identity.name, 'about.name')), FINDING_LIMITS.label),
    ...(identity.bootNonce !== undefined && { bootNonce: cutText(text(identity.bootNonce, 'about.bootNonce'), 64) }),
  }
}

/** A key of at most {@link FINDING_LIMITS.key} characters that still differs where the whole key differed. */
export function boundKey(key: string): string {
  const whole = wellFormed(key)
  if (whole.length <= FINDING_LIMITS.key) return whole
  const digest = createHash('sha256').update(whole).digest('hex')
  return `${cutText(whole, FINDING_LIMITS.key - digest.length - 1)}#${digest}`
}

function bounded<T>(items: readonly T[], path: string, cuts: Cuts): readonly T[] {
  if (!Array.isArray(items)) return misused(path, items)
  if (items.length > FINDING_LIMITS.labels) cuts.add(`${path}: ${FINDING_LIMITS.labels} of ${items.length}`)
  return items.slice(0, FINDING_LIMITS.labels)
}

function text(value: unknown, what: string): string {
  if (typeof value === 'string') return value
  return misused(what, value)
}

function misused(what: string, value: unknown): never {
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `Finding: ${what} can not be ${typeof value}`)
}
