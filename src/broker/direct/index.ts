export { DirectClient } from './client.js'
export type { DirectEnd, DirectLease, DomainRef } from './lease.js'
export { type SuperviseOptions, type Supervisor, superviseDirect } from './supervisor.js'
