import { RpcTarget } from 'capnweb'
import type { VmInfo } from '../capabilities/delegation.js'
import type { GuestVm, VcpuRegisters } from '../vmi/guest.js'
import { LIMITS } from '../vmi/memory.js'
import { JobSchema, parseArgument, RightSchema, SectionSchema } from './edge.js'
import { type HeldPause, type Lease, type Operation, unsupported } from './lease.js'
import { checkScope, checkUnscoped, readTouches } from './scope.js'
import { decodeReads, decodeWrites, encodeReadResults, encodeWriteResults } from './wire/read.js'
import {
  decodeDigest,
  decodePages,
  decodeSearch,
  encodeDigestResult,
  encodePagesResult,
  encodeSearchResult,
} from './wire/scan.js'
import { decodeWalks, encodeWalkResults } from './wire/walk.js'

type Memory = NonNullable<GuestVm['memory']>

/** Bytes a match, a run of pages, a page's digest have on the wire. */
const MATCH = 9
const RUN = 25
const DIGEST = 33

/**
 * A live capability as its holder sees it over the wire. Every method is reachable by a hostile peer: arguments are
 * checked here, rights in {@link Lease.run}.
 */
export class DelegationTarget extends RpcTarget {
  readonly #lease: Lease

  constructor(lease: Lease) {
    super()
    this.#lease = lease
  }

  read(message: unknown, job?: unknown): Promise<Uint8Array[]> {
    return this.#memory('memory.read', job, () => {
      const { requests, resultBytes } = decodeReads(message)
      return {
        weight: resultBytes,
        check: () => checkScope(this.#lease.token.grant, 'memory.read', readTouches(requests)),
        run: async (memory, signal) => encodeReadResults(await memory.read(requests, { signal })),
      }
    })
  }

  walk(message: unknown, job?: unknown): Promise<Uint8Array> {
    return this.#memory('memory.walk', job, () => {
      const { plans, resultBytes } = decodeWalks(message)
      return {
        weight: resultBytes,
        check: () => checkUnscoped(this.#lease.token.grant, 'memory.read'),
        run: async (memory, signal) => encodeWalkResults(await memory.walk(plans, { signal })),
      }
    })
  }

  pages(message: unknown, job?: unknown): Promise<Uint8Array> {
    return this.#memory('memory.pages', job, () => {
      const request = decodePages(message)
      return {
        weight: request.limit * RUN,
        check: () => checkUnscoped(this.#lease.token.grant, 'memory.read'),
        run: async (memory, signal) => encodePagesResult(await memory.pages(request, { signal })),
      }
    })
  }

  search(message: unknown, job?: unknown): Promise<Uint8Array> {
    return this.#memory('memory.search', job, () => {
      const request = decodeSearch(message)
      return {
        weight: request.limit * MATCH,
        check: () => checkScope(this.#lease.token.grant, 'memory.read', [request]),
        run: async (memory, signal) => encodeSearchResult(await memory.search(request, { signal })),
      }
    })
  }

  digest(message: unknown, job?: unknown): Promise<Uint8Array> {
    return this.#memory('memory.digest', job, () => {
      const { request, pages } = decodeDigest(message)
      return {
        weight: pages * DIGEST,
        check: () => checkScope(this.#lease.token.grant, 'memory.read', [request]),
        run: async (memory, signal) => encodeDigestResult(await memory.digest(request, { signal })),
      }
    })
  }

  write(message: unknown, job?: unknown): Promise<Uint8Array> {
    const lease = this.#lease
    return lease.run(
      'memory.write',
      {
        right: 'memory.write',
        weight: 0,
        check: () => {
          const requests = decodeWrites(message)
          checkScope(
            lease.token.grant,
            'memory.write',
            requests.map(({ space, at, bytes }) => ({ space, start: at, end: at + BigInt(bytes.length) })),
          )
        },
        run: async (vm, signal) => {
          if (vm.memory?.write === undefined) throw unsupported('memory that can be written', lease.vmName)
          return encodeWriteResults(await vm.memory.write(decodeWrites(message), { signal }))
        },
        bytes: () => 0,
      },
      parseArgument('job', JobSchema, job),
    )
  }

  registers(): Promise<VcpuRegisters[]> {
    return this.#lease.registers()
  }

  info(): Promise<VmInfo> {
    return this.#lease.info()
  }

  async pause(): Promise<PauseTarget> {
    return new PauseTarget(await this.#lease.pause())
  }

  /** The small part of the kernel profile. */
  kernel(): Promise<Uint8Array> {
    return this.#kernel((parts) => Promise.resolve(parts.header))
  }

  /** One of its large parts. */
  section(name: unknown): Promise<Uint8Array> {
    const checked = parseArgument('section', SectionSchema, name)
    return this.#kernel((parts) => parts.section(checked))
  }

  /** Tells that a right which is not held was wanted, for the audit log. */
  denied(right: unknown): Promise<void> {
    return this.#lease.denied(parseArgument('right', RightSchema, right))
  }

  /** What is left of the token's limits. */
  budget(): ReturnType<Lease['budget']> {
    return this.#lease.budget()
  }

  cancel(job: unknown): void {
    this.#lease.cancel(parseArgument('job', JobSchema, job))
  }

  #memory<T extends Uint8Array | Uint8Array[]>(
    action: string,
    job: unknown,
    decode: () => {
      readonly weight: number
      check(): void
      run(memory: Memory, signal: AbortSignal): Promise<T>
    },
  ): Promise<T> {
    const lease = this.#lease
    const { weight, check, run } = decode()
    const operation: Operation<T> = {
      right: 'memory.read',
      weight: Math.min(weight, LIMITS.resultBytes),
      check,
      run: (vm, signal) => {
        if (vm.memory === undefined) throw unsupported('memory', lease.vmName)
        return run(vm.memory, signal)
      },
      bytes: lengthOf,
    }
    return lease.run(action, operation, parseArgument('job', JobSchema, job))
  }

  #kernel(part: (parts: Awaited<ReturnType<GuestVm['kernel']>>) => Promise<Uint8Array>): Promise<Uint8Array> {
    const lease = this.#lease
    // Any right on the VM is enough: what a kernel looks like is no secret of its owner.
    const right = lease.token.grant.rights[0]
    if (right === undefined) throw unsupported('kernel profile for nobody', lease.vmName)
    return lease.run('vm.kernel', {
      right,
      weight: LIMITS.resultBytes / 4,
      run: async (vm, signal) => part(await vm.kernel({ signal })),
      bytes: () => 0,
    })
  }
}

function lengthOf(result: Uint8Array | Uint8Array[]): number {
  if (result instanceof Uint8Array) return result.length
  let length = 0
  for (const part of result) length += part.length
  return length
}

/** A pause of the VM; dropping the stub ends it as well. */
export class PauseTarget extends RpcTarget {
  readonly #held: HeldPause

  constructor(held: HeldPause) {
    super()
    this.#held = held
  }

  close(): Promise<void> {
    return this.#held.close()
  }

  [Symbol.dispose](): void {
    void this.#held.close()
  }
}
