/**
 * OCSF 1.8.0 events as this library emits them. Names and meanings are OCSF's; times are milliseconds since 1970 (UTC).
 * What is written here is checked by {@link assertOcsf}, which knows more attributes than we fill.
 */

import type { ArtifactRef } from '../artifacts/types.js'

/** Any value JSON can carry. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [name: string]: Json }

export interface OcsfProduct {
  readonly name: string
  readonly vendor_name: string
  readonly uid?: string
  readonly version?: string
}

export interface OcsfMetadata {
  readonly version: '1.8.0'
  readonly product: OcsfProduct
  /** Unique to this event: one finding has one event for each change of it. */
  readonly uid?: string
  readonly log_name?: string
  readonly original_time?: string
  readonly logged_time?: number
  /** True if evidence or text was cut to a bound; the cuts are listed in `unmapped.cloudapp.cut`. */
  readonly is_truncated?: boolean
  /** Bytes the evidence would have had. */
  readonly untruncated_size?: number
}

export interface OcsfAnalytic {
  readonly name?: string
  readonly uid?: string
  readonly version?: string
  readonly type_id: number
  readonly type?: string
}

export interface OcsfAttack {
  readonly tactic?: { readonly uid?: string; readonly name?: string }
  readonly technique?: { readonly uid?: string; readonly name?: string }
  readonly sub_technique?: { readonly uid?: string; readonly name?: string }
  /** Version of the ATT&CK matrix. */
  readonly version?: string
}

export interface OcsfFindingInfo {
  /** Stable for the life of the finding. */
  readonly uid: string
  readonly title: string
  readonly desc?: string
  readonly types?: readonly string[]
  readonly analytic?: OcsfAnalytic
  readonly attacks?: readonly OcsfAttack[]
  readonly data_sources?: readonly string[]
  readonly created_time: number
  readonly modified_time: number
  readonly first_seen_time: number
  readonly last_seen_time: number
}

export interface OcsfFile {
  readonly name: string
  readonly type_id: number
  readonly type?: string
  readonly path?: string
  readonly size?: number
}

export interface OcsfUser {
  readonly name?: string
  readonly uid?: string
  readonly type_id?: number
  readonly type?: string
}

export interface OcsfProcess {
  readonly pid?: number
  readonly name?: string
  readonly cmd_line?: string
  readonly uid?: string
  readonly file?: OcsfFile
  readonly user?: OcsfUser
  readonly parent_process?: OcsfProcess
}

export interface OcsfEvidence {
  readonly name?: string
  readonly uid?: string
  readonly process?: OcsfProcess
  readonly file?: OcsfFile
  /** The rest of the evidence. Addresses are `0x…` strings; a kernel module is `module: { name, … }`. */
  readonly data?: Json
}

export interface OcsfResource {
  readonly uid?: string
  readonly name?: string
  readonly type?: string
  readonly role_id?: number
  readonly role?: string
  readonly data?: Json
}

/** Beyond OCSF: what allowed the look, and what was cut. Stands in the event's `unmapped.cloudapp`. */
export interface FindingExtension {
  /** The right that allowed the look. */
  readonly right?: string
  /** Block id of the capability that allowed the look (hexadecimal). */
  readonly block?: string
  /** The key the author deduplicates by. */
  readonly key: string
  /** What was cut to a bound, in words, by path. */
  readonly cut?: readonly string[]
  readonly acknowledged?: { readonly at: number; readonly by: string; readonly comment?: string }
  /** Evidence kept beside the finding, by the SHA-256 of its bytes. */
  readonly artifacts?: readonly ArtifactRef[]
}

/** Detection Finding, class_uid 2004. */
export interface DetectionFinding {
  /** 1 Create, 2 Update, 3 Close. */
  readonly activity_id: 1 | 2 | 3
  readonly activity_name: string
  readonly category_uid: 2
  readonly category_name: 'Findings'
  readonly class_uid: 2004
  readonly class_name: 'Detection Finding'
  readonly type_uid: number
  readonly type_name: string
  /** 1 Informational, 2 Low, 3 Medium, 4 High, 5 Critical, 6 Fatal. */
  readonly severity_id: 1 | 2 | 3 | 4 | 5 | 6
  readonly severity: string
  /** 1 New, 2 In Progress (acknowledged), 4 Resolved (closed). */
  readonly status_id: 1 | 2 | 4
  readonly status: string
  readonly status_detail?: string
  readonly comment?: string
  readonly confidence_id?: 1 | 2 | 3
  readonly confidence?: string
  readonly confidence_score?: number
  /** How often it was raised. */
  readonly count: number
  readonly time: number
  readonly start_time: number
  readonly end_time: number
  readonly message: string
  readonly is_alert: boolean
  readonly metadata: OcsfMetadata
  readonly finding_info: OcsfFindingInfo
  readonly evidences?: readonly OcsfEvidence[]
  readonly resources: readonly OcsfResource[]
  readonly remediation?: { readonly desc: string; readonly references?: readonly string[] }
  readonly unmapped: { readonly cloudapp: FindingExtension }
}

/** API Activity, class_uid 6003: one record of the audit log, exported. */
export interface ApiActivity {
  /** 1 Create, 2 Read, 3 Update, 4 Delete, 99 Other. */
  readonly activity_id: 1 | 2 | 3 | 4 | 99
  readonly activity_name: string
  readonly category_uid: 6
  readonly category_name: 'Application Activity'
  readonly class_uid: 6003
  readonly class_name: 'API Activity'
  readonly type_uid: number
  readonly type_name: string
  readonly severity_id: number
  readonly severity: string
  /** 1 Success, 2 Failure. */
  readonly status_id: 1 | 2
  readonly status: string
  readonly status_code?: string
  readonly status_detail?: string
  readonly count?: number
  readonly time: number
  readonly message?: string
  readonly metadata: OcsfMetadata
  readonly actor: { readonly user: OcsfUser; readonly process?: OcsfProcess }
  readonly api: {
    readonly operation: string
    readonly request?: { readonly uid: string; readonly data?: Json }
    readonly response?: { readonly code?: number; readonly error?: string; readonly message?: string }
    readonly service?: { readonly name?: string; readonly uid?: string; readonly version?: string }
  }
  readonly src_endpoint: { readonly uid?: string; readonly name?: string; readonly svc_name?: string }
  readonly resources?: readonly OcsfResource[]
  readonly unmapped?: { readonly [name: string]: Json }
}
