import { RpcTarget } from 'capnweb'
import type { DelegatedProcess, VmInfo } from '../capabilities/delegation.js'
import { beyondSyscalls } from '../capabilities/syscall-limit.js'
import { CloudAppError } from '../errors.js'
import type { EventCounts, EventSupport } from '../vmi/events/source.js'
import type { GuestVm, VcpuRegisters } from '../vmi/guest.js'
import { type CallOptions, LIMITS, type Space } from '../vmi/memory.js'
import { BufferSchema, JobSchema, parseArgument, RightSchema, SectionSchema } from './edge.js'
import type { HeldEvents } from './held-events.js'
import type { HeldPause } from './held-pause.js'
import { type Lease, type Operation, unsupported } from './lease.js'
import { lengthOf } from './results.js'
import { checkBefore, isScoped, readTouches, type Touch } from './scope/touches.js'
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
/** What a process counts, with its name and cgroup. */
const PROCESS = 64

/** Processes told of at once. */
const MAX_PROCESSES = 4096

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
        touches: () => readTouches(requests),
        run: async (memory, call) => encodeReadResults(await memory.read(requests, call)),
      }
    })
  }

  walk(message: unknown, job?: unknown): Promise<Uint8Array[]> {
    return this.#memory('memory.walk', job, () => {
      const { plans, resultBytes } = decodeWalks(message)
      return {
        weight: resultBytes,
        // Where the guest's pointers lead is found out on the way; what the holder names itself is the head.
        touches: () => plans.map(({ space, head }) => ({ space, start: head, end: head + 1n })),
        run: async (memory, call) => encodeWalkResults(await memory.walk(plans, call)),
      }
    })
  }

  pages(message: unknown, job?: unknown): Promise<Uint8Array[]> {
    return this.#memory('memory.pages', job, () => {
      const request = decodePages(message)
      return {
        weight: request.limit * RUN,
        touches: () => [request],
        run: async (memory, call) => encodePagesResult(await memory.pages(request, call)),
      }
    })
  }

  search(message: unknown, job?: unknown): Promise<Uint8Array> {
    return this.#memory('memory.search', job, () => {
      const request = decodeSearch(message)
      return {
        weight: request.limit * MATCH,
        touches: () => [request],
        run: async (memory, call) => encodeSearchResult(await memory.search(request, call)),
      }
    })
  }

  digest(message: unknown, job?: unknown): Promise<Uint8Array[]> {
    return this.#memory('memory.digest', job, () => {
      const { request, pages } = decodeDigest(message)
      return {
        weight: pages * DIGEST,
        touches: () => [request],
        run: async (memory, call) => encodeDigestResult(await memory.digest(request, call)),
      }
    })
  }

  write(message: unknown, job?: unknown): Promise<Uint8Array> {
    const lease = this.#lease
    const requests = decodeWrites(message)
    return lease.run(
      'memory.write',
      {
        right: 'memory.write',
        weight: 0,
        check: () => {
          const touches = requests.map(({ space, at, bytes }) => ({ space, start: at, end: at + BigInt(bytes.length) }))
          checkBefore(lease.token.grant, 'memory.write', touches)
        },
        run: async (vm, call) => {
          const { memory } = vm
          if (memory?.write === undefined) throw unsupported('memory that can be written', lease.vmName)
          const spaces = requests.map(({ space }) => space)
          return lease.scope.perform(vm, memory, spaces, 'memory.write', async (scoped) =>
            encodeWriteResults(await (scoped.write as NonNullable<Memory['write']>)(requests, call)),
          )
        },
        bytes: () => 0,
      },
      parseArgument('job', JobSchema, job),
    )
  }

  /** The processes the capability reaches, and their address spaces now. */
  processes(): Promise<DelegatedProcess[]> {
    const lease = this.#lease
    return lease.run('memory.processes', {
      right: 'memory.read',
      weight: MAX_PROCESSES * PROCESS,
      run: async (vm) => {
        if (vm.memory === undefined) throw unsupported('memory', lease.vmName)
        const found = await lease.scope.processes(vm)
        if (found.length > MAX_PROCESSES) {
          throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `${found.length} processes are more than ${MAX_PROCESSES}`, {
            details: { limit: 'processes', most: MAX_PROCESSES },
          })
        }
        return found.map(({ task, cgroup, space }) => ({
          pid: task.pid,
          name: task.comm,
          space,
          ...(cgroup === undefined ? {} : { cgroup }),
        }))
      },
      bytes: (found) => found.length * PROCESS,
    })
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

  /** Subscribes to the events of a program. */
  async subscribe(program: unknown, buffer?: unknown): Promise<SubscriptionTarget> {
    return new SubscriptionTarget(await this.#lease.subscribe(program, parseArgument('buffer', BufferSchema, buffer)))
  }

  /** What the host traps. */
  eventSupport(): Promise<EventSupport> {
    return this.#lease.eventSupport()
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
      touches(): Iterable<Touch>
      run(memory: Memory, call: CallOptions): Promise<T>
    },
  ): Promise<T> {
    const lease = this.#lease
    const { weight, touches, run } = decode()
    const { grant } = lease.token
    const operation: Operation<T> = {
      right: 'memory.read',
      weight: Math.min(weight, LIMITS.resultBytes),
      check: () => checkBefore(grant, 'memory.read', touches()),
      run: (vm, call) => {
        const { memory } = vm
        if (memory === undefined) throw unsupported('memory', lease.vmName)
        if (!isScoped(grant)) return run(memory, call)
        return lease.scope.perform(vm, memory, spacesOf(touches()), 'memory.read', (scoped) => run(scoped, call))
      },
      bytes: lengthOf,
    }
    return lease.run(action, operation, parseArgument('job', JobSchema, job))
  }

  #kernel(part: (parts: Awaited<ReturnType<GuestVm['kernel']>>) => Promise<Uint8Array>): Promise<Uint8Array> {
    const lease = this.#lease
    const { grant } = lease.token
    // Any right that can be used is enough: what a kernel looks like is no secret of its owner.
    const right = grant.rights.find((held) => !beyondSyscalls(grant, held)) ?? grant.rights[0]
    if (right === undefined) throw unsupported('kernel profile for nobody', lease.vmName)
    return lease.run('vm.kernel', {
      right,
      weight: LIMITS.resultBytes / 4,
      run: async (vm, { signal }) => part(await vm.kernel({ signal })),
      bytes: () => 0,
    })
  }
}

function* spacesOf(touches: Iterable<Touch>): Generator<Space> {
  for (const { space } of touches) yield space
}

/** Events of one program; dropping the stub ends them as well. */
export class SubscriptionTarget extends RpcTarget {
  readonly #held: HeldEvents

  constructor(held: HeldEvents) {
    super()
    this.#held = held
  }

  /** The next batch, when there is one; null at the end. Asked once at a time: that is the flow control. */
  async next(): Promise<Uint8Array | null> {
    return (await this.#held.next()) ?? null
  }

  counts(): Promise<EventCounts> {
    return this.#held.counts()
  }

  close(): Promise<void> {
    return this.#held.close()
  }

  [Symbol.dispose](): void {
    // A source that fails to end has its VM's handle to say so.
    this.#held.close().catch(() => undefined)
  }
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
