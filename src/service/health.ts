import { channel as diagnostics } from 'node:diagnostics_channel'
import { CloudAppError } from '../errors.js'
import { cutText, wellFormed } from './bounds.js'
import type { Health } from './interface/protocol.js'
import { inScope, type VmScope } from './scope.js'

/** Told of everything that went wrong in a service domain: `{ service, source, error, about }`. */
export const serviceFailures = diagnostics('cloudapp.service.failure')

/**
 * What a failure is about, and so who may hear of it: one VM; the `service` as a whole (everybody who may ask about some
 * VM); or `unknown`, which may tell of a tenant and is told only to those who see all.
 */
export type FailureOf = { readonly uuid: string; readonly name: string } | 'service' | 'unknown'

/** One thing that is wrong. */
export interface Failure {
  /** A handler, a token, the store, a listener. */
  readonly source: string
  /** Of a {@link CloudAppError}; `unexpected` for any other error. */
  readonly code: string
  readonly message: string
}

interface Reason {
  readonly code: string
  readonly message: string
  readonly about: FailureOf
  readonly since: number
}

/** At most so many reasons are kept; the oldest goes first. */
const REASONS = 256

/**
 * What is wrong with a service domain at present, by source (a handler, a token, the store). A source that works again
 * clears its reason.
 */
export class HealthState {
  readonly #service: string
  readonly #onNew: (failure: Failure) => void
  readonly #reasons = new Map<string, Reason>()
  #since = Date.now()
  #closing = false

  /** @param onNew told of what goes wrong, once for as long as it stays the same */
  constructor(service: string, onNew: (failure: Failure) => void = () => {}) {
    this.#service = service
    this.#onNew = onNew
  }

  /** Notes that `source` failed. */
  fail(source: string, error: unknown, about: FailureOf): void {
    const known = this.#reasons.get(source)
    const code = CloudAppError.is(error) ? error.code : 'unexpected'
    const message = cutText(wellFormed(error instanceof Error ? error.message : String(error)), 1000)
    if (this.#reasons.size === 0) this.#since = Date.now()
    this.#reasons.delete(source)
    this.#reasons.set(source, { code, message, about, since: known?.since ?? Date.now() })
    const oldest = this.#reasons.keys().next().value
    if (this.#reasons.size > REASONS && oldest !== undefined) this.#reasons.delete(oldest)
    if (serviceFailures.hasSubscribers) serviceFailures.publish({ service: this.#service, source, error, about })
    if (known?.code !== code || known.message !== message) this.#onNew({ source, code, message })
  }

  /** Notes that `source` works (again). */
  ok(source: string): void {
    if (this.#reasons.delete(source) && this.#reasons.size === 0) this.#since = Date.now()
  }

  closing(): void {
    this.#closing = true
    this.#since = Date.now()
  }

  /** As one asker may see it: nothing of VMs outside its scope, not even that something is wrong there. */
  report(scope: VmScope, vms: readonly { readonly uuid: string; readonly name: string }[]): Health {
    const reasons = [...this.#reasons.values()].filter(({ about }) => {
      if (scope === 'all') return true
      return about === 'service' ? scope.size > 0 : about !== 'unknown' && scope.has(about.uuid)
    })
    return {
      status: this.#closing ? 'closing' : reasons.length > 0 ? 'degraded' : 'ok',
      // Since when it is so: a time of its own would tell of other tenants' troubles.
      since: reasons.length > 0 ? Math.min(...reasons.map((r) => r.since)) : scope === 'all' ? this.#since : 0,
      reasons: reasons.map(({ code, message, about, since }) => {
        return { code, message, ...(typeof about === 'object' && { vm: about.name }), since }
      }),
      vms: vms.filter((vm) => inScope(scope, vm.uuid)).map(({ name, uuid }) => ({ name, uuid })),
    }
  }
}
