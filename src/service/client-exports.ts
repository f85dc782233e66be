export type { ArtifactRef } from './artifacts/types.js'
export {
  type ClientArtifacts,
  type ClientCall,
  type ClientFindings,
  type ClientRun,
  type ConnectOptions,
  type FindingFilter,
  type ListOptions,
  SdClient,
  type WatchOptions,
} from './client.js'
export type { ClientFinding, FindingGap } from './client-streams.js'
export { announce, type DiscoverOptions, discover, type Endpoint } from './discover.js'
export type { Description, Health, HealthReason, RunEvent } from './interface/protocol.js'
export { assertOcsf, type OcsfClass, type OcsfProblem, ocsfProblems } from './ocsf/index.js'
export type * from './ocsf/types.js'
export { escapeText, findingsTable, type TableOptions } from './table.js'
export { type ChangeKind, type Confidence, type FindingStatus, SEVERITIES, type Severity } from './vocabulary.js'
