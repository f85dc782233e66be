import type { ArtifactRef } from './artifacts/types.js'
import type { FindingDraft } from './draft.js'
import { CLASSES, OCSF_VERSION } from './ocsf/facts.js'
import type { DetectionFinding, OcsfProduct } from './ocsf/types.js'
import { assertOcsf, caption } from './ocsf/validate.js'
import type { ChangeKind } from './vocabulary.js'

/** The state of a finding that changes while its draft stays. Times are milliseconds since 1970. */
export interface FindingState {
  readonly uid: string
  readonly change: ChangeKind
  readonly status: 1 | 2 | 4
  /** Counts the events of this finding from 1: with the uid it names the event. */
  readonly revision: number
  readonly count: number
  readonly first: number
  /** Last time it was raised. */
  readonly last: number
  readonly time: number
  readonly acknowledged?: { readonly at: number; readonly by: string; readonly comment?: string }
  readonly artifacts?: readonly ArtifactRef[]
  /** Why it was closed, in words. */
  readonly detail?: string
}

/** Largest integer_t. */
const INT32 = 0x7fff_ffff

const ACTIVITY = { create: 1, update: 2, acknowledge: 2, close: 3 } as const

/**
 * The OCSF event of a finding that was raised. Throws ERR_CLOUDAPP_INVALID_ARGUMENT if it would not be valid OCSF, which a
 * checked draft never is.
 */
export function findingEvent(draft: FindingDraft, state: FindingState, product: OcsfProduct): DetectionFinding {
  const cls = CLASSES.detection_finding
  const event: DetectionFinding = {
    category_uid: cls.category_uid,
    category_name: cls.category_name,
    class_uid: cls.class_uid,
    class_name: cls.class_name,
    ...stateFields(state, draft.severity),
    severity_id: draft.severity,
    severity: caption('detection_finding', 'severity_id', draft.severity),
    ...(draft.confidence && {
      confidence_id: draft.confidence.id,
      confidence: caption('detection_finding', 'confidence_id', draft.confidence.id),
      ...(draft.confidence.score !== undefined && { confidence_score: draft.confidence.score }),
    }),
    message: draft.title,
    metadata: {
      version: OCSF_VERSION,
      product,
      uid: eventUid(state),
      log_name: 'findings',
      ...(draft.cut && { is_truncated: true, untruncated_size: Math.min(draft.untruncated ?? 0, INT32) }),
    },
    finding_info: {
      uid: state.uid,
      title: draft.title,
      ...(draft.description !== undefined && { desc: draft.description }),
      ...(draft.types && { types: draft.types }),
      ...(draft.attacks && { attacks: draft.attacks }),
      ...(draft.analytic && { analytic: draft.analytic }),
      ...(draft.right !== undefined && { data_sources: [draft.right] }),
      ...stateTimes(state),
    },
    ...(draft.evidences.length > 0 && { evidences: draft.evidences }),
    resources: [
      {
        uid: draft.vm.uuid,
        name: draft.vm.name,
        type: 'Virtual Machine',
        role_id: 1,
        role: caption('resource_details', 'role_id', 1),
        ...(draft.vm.bootNonce !== undefined && { data: { boot_nonce: draft.vm.bootNonce } }),
      },
    ],
    ...(draft.remediation !== undefined && { remediation: { desc: draft.remediation } }),
    unmapped: {
      cloudapp: {
        key: draft.key,
        ...(draft.right !== undefined && { right: draft.right }),
        ...(draft.block !== undefined && { block: draft.block }),
        ...(draft.cut && { cut: draft.cut }),
        ...(state.artifacts && { artifacts: state.artifacts }),
        ...(state.acknowledged && { acknowledged: state.acknowledged }),
      },
    },
  }
  assertOcsf('detection_finding', event)
  return event
}

/** The event of a change of state (acknowledged, closed) of a finding whose words and evidence stay as in `event`. */
export function reviseEvent(event: DetectionFinding, state: FindingState): DetectionFinding {
  const revised: DetectionFinding = {
    ...event,
    ...stateFields(state, event.severity_id),
    metadata: { ...event.metadata, uid: eventUid(state) },
    finding_info: { ...event.finding_info, ...stateTimes(state) },
    unmapped: {
      cloudapp: { ...event.unmapped.cloudapp, ...(state.acknowledged && { acknowledged: state.acknowledged }) },
    },
  }
  assertOcsf('detection_finding', revised)
  return revised
}

function stateFields(state: FindingState, severity: number) {
  const cls = CLASSES.detection_finding
  const activity = ACTIVITY[state.change]
  const name = caption('detection_finding', 'activity_id', activity)
  return {
    activity_id: activity,
    activity_name: name,
    type_uid: cls.class_uid * 100 + activity,
    type_name: `${cls.class_name}: ${name}`,
    status_id: state.status,
    status: caption('detection_finding', 'status_id', state.status),
    ...(state.detail !== undefined && { status_detail: state.detail }),
    ...(state.acknowledged?.comment !== undefined && { comment: state.acknowledged.comment }),
    count: Math.min(state.count, INT32),
    time: state.time,
    start_time: state.first,
    end_time: state.last,
    is_alert: severity >= 4 && state.status !== 4,
  }
}

function stateTimes(state: FindingState) {
  return {
    created_time: state.first,
    modified_time: state.time,
    first_seen_time: state.first,
    last_seen_time: state.last,
  }
}

function eventUid(state: FindingState): string {
  return `${state.uid}:${state.revision}`
}
