export { type AuditedOperation, apiActivity } from './api-activity.js'
export { CLASSES, OCSF_VERSION } from './facts.js'
export type * from './types.js'
export { assertOcsf, caption, type OcsfClass, type OcsfProblem, ocsfProblems } from './validate.js'
