import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import { GuardedStream } from '../vmi/events/guarded.js'
import type { EventSource } from '../vmi/events/source.js'
import type { MemoryReader, MemoryWriter } from '../vmi/memory.js'
import type { Grant } from './caveats.js'
import type { AttenuateRequest, DelegatedReader, Delegation, DelegationPorts } from './delegation.js'
import { CAVEAT_NAMES } from './dimensions.js'
import { missingEventRight } from './event-rights.js'
import { revokedPorts } from './revoked-port.js'
import { deniedError, isRight, type Right } from './rights.js'

/** A delegation and the end of it that only its maker holds. */
export interface DelegationHandle<R extends Right> {
  readonly delegation: Delegation<R>
  /** Ends it: every later use, also through parts taken out of it before, throws `reason`. Idempotent. */
  end(reason: CloudAppError): void
}

/**
 * Builds the object a holder works with from what the broker granted and where operations go. Only what is granted is
 * there; parts are wrapped, so that ending the handle reaches those who kept a part of it.
 */
export function makeDelegation<R extends Right>(grant: Grant, ports: DelegationPorts): DelegationHandle<R> {
  const core = new DelegationCore(grant, ports)
  return { delegation: core.face as unknown as Delegation<R>, end: (reason) => core.end(reason) }
}

class DelegationCore {
  readonly face: Record<string | symbol, unknown>
  readonly #grant: Grant
  #ports: DelegationPorts
  readonly #ended = new AbortController()
  readonly #children = new Set<(reason: CloudAppError) => void>()
  #closing: Promise<void> | undefined

  constructor(grant: Grant, ports: DelegationPorts) {
    this.#grant = grant
    this.#ports = ports
    const close = () => this.#close()
    this.face = {
      identity: ports.identity,
      rights: Object.freeze([...grant.rights]),
      grant,
      closed: this.#ended.signal,
      kernel: async (options?: { readonly signal?: AbortSignal }) => this.#ports.kernel(options),
      budget: async () => this.#method('budget')(),
      has: (right: Right) => grant.rights.includes(right),
      demand: (right: Right) => this.#demand(right),
      attenuate: (request: AttenuateRequest<Right>) => this.#attenuate(request),
      delegate: async (request: Parameters<NonNullable<DelegationPorts['delegate']>>[0]) => this.#delegate(request),
      close,
      [Symbol.asyncDispose]: close,
      ...this.#parts(ports),
    }
    Object.freeze(this.face)
    const { ended } = ports
    const over = () => this.end(ended?.reason as CloudAppError)
    if (ended?.aborted === true) over()
    else ended?.addEventListener('abort', over, { once: true })
  }

  end(reason: CloudAppError): void {
    if (this.#ended.signal.aborted) return
    this.#ports = revokedPorts(this.#ports.identity, reason)
    for (const end of this.#children) end(reason)
    this.#children.clear()
    this.#ended.abort(reason)
  }

  #parts(ports: DelegationPorts): Record<string, unknown> {
    const held = (right: Right) => this.#grant.rights.includes(right)
    const parts: Record<string, unknown> = {}
    const memory = this.#memory(ports, held('memory.read'), held('memory.write'))
    if (memory !== undefined) parts.memory = memory
    if (held('vcpu.read') && ports.vcpus !== undefined) {
      parts.vcpus = Object.freeze({
        registers: async (options?: { readonly signal?: AbortSignal }) => this.#part('vcpus').registers(options),
      })
    }
    if ((held('events.register') || held('events.memory')) && ports.events !== undefined) parts.events = this.#events()
    if (held('memory.read')) parts.processes = async () => this.#method('processes')()
    if (held('vm.pause') && ports.pause !== undefined) parts.pause = async () => this.#method('pause')()
    if (held('vm.info') && ports.info !== undefined) parts.info = async () => this.#method('info')()
    return parts
  }

  #memory(ports: DelegationPorts, read: boolean, write: boolean): object | undefined {
    if (ports.memory === undefined || !(read || write)) return undefined
    const now = () => this.#part('memory')
    const reader: DelegatedReader = {
      end: ports.memory.end,
      read: async (requests, options) => now().read(requests, options),
      walk: async (plans, options) => now().walk(plans, options),
      pages: async (request, options) => now().pages(request, options),
      search: async (request, options) => now().search(request, options),
      digest: async (request, options) => now().digest(request, options),
      ...(ports.memory.sync === undefined ? {} : { sync: this.#sync() }),
    }
    const writer: MemoryWriter = {
      write: async (requests, options) => {
        const memory = now()
        if (memory.write === undefined) throw unsupported('this source can not be written')
        return memory.write(requests, options)
      },
    }
    return Object.freeze({ ...(read ? reader : {}), ...(write ? writer : {}) })
  }

  #sync(): NonNullable<DelegatedReader['sync']> {
    const now = () => {
      const { sync } = this.#part('memory')
      if (sync === undefined) throw unsupported('this source has no synchronous view')
      return sync
    }
    return Object.freeze({
      read: (requests: Parameters<MemoryReader['read']>[0]) => now().read(requests),
      walk: (plans: Parameters<MemoryReader['walk']>[0]) => now().walk(plans),
    })
  }

  #events(): EventSource {
    return Object.freeze<EventSource>({
      subscribe: async (program, options) => {
        const events = this.#part('events')
        const missing = missingEventRight(program, this.#grant.rights)
        if (missing !== undefined) await this.#demand(missing)
        const stream = new GuardedStream(await events.subscribe(program, options), this.#ended.signal)
        this.#alive()
        return stream
      },
      support: async () => this.#part('events').support(),
    })
  }

  #part<K extends 'memory' | 'vcpus' | 'events'>(name: K): NonNullable<DelegationPorts[K]> {
    const part = this.#ports[name]
    if (part === undefined) throw unsupported(`this source has no ${name}`)
    return part
  }

  #method<K extends 'pause' | 'info' | 'processes' | 'budget'>(name: K): NonNullable<DelegationPorts[K]> {
    const method = this.#ports[name]
    if (method === undefined) throw unsupported(`this source can not do ${name}`)
    return method.bind(this.#ports) as NonNullable<DelegationPorts[K]>
  }

  async #demand(right: Right): Promise<unknown> {
    this.#alive()
    if (this.#grant.rights.includes(right)) return this.face
    if (isRight(right)) await this.#ports.denied?.(right)
    throw deniedError(right, this.#grant.rights, this.#ports.identity.name)
  }

  async #attenuate(request: AttenuateRequest<Right>): Promise<unknown> {
    checkRequest('attenuate', request, [])
    this.#alive()
    if (this.#ports.attenuate === undefined) throw unsupported('this handle has no token that could be attenuated')
    const { grant, ports } = await this.#ports.attenuate(request)
    const child = new DelegationCore(grant, ports)
    // The parent may have ended while the broker was asked.
    if (this.#ended.signal.aborted) {
      child.end(this.#ended.signal.reason as CloudAppError)
    } else {
      const end = (reason: CloudAppError) => child.end(reason)
      this.#children.add(end)
      const forget = () => this.#children.delete(end)
      child.#ended.signal.addEventListener('abort', forget, { once: true })
    }
    this.#alive()
    return child.face
  }

  async #delegate(request: Parameters<NonNullable<DelegationPorts['delegate']>>[0]): Promise<string> {
    checkRequest('delegate', request, ['to'])
    this.#alive()
    if (this.#ports.delegate === undefined) throw unsupported('this handle has no token that could be passed on')
    return this.#ports.delegate(request)
  }

  #alive(): void {
    if (this.#ended.signal.aborted) throw this.#ended.signal.reason
  }

  #close(): Promise<void> {
    this.#closing ??= this.#closeOnce()
    return this.#closing
  }

  async #closeOnce(): Promise<void> {
    if (this.#ended.signal.aborted) return
    const ports = this.#ports
    this.end(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the delegation is closed', { vm: ports.identity.name }))
    await ports.close?.()
  }
}

function checkRequest(name: string, request: object, more: readonly string[]): void {
  checkOptions(name, request, ['rights', ...CAVEAT_NAMES.filter((caveat) => caveat !== 'audience'), ...more])
}

function unsupported(message: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', message)
}
