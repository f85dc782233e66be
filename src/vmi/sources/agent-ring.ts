import { closeSync } from 'node:fs'
import { CloudAppError } from '../../errors.js'
import type { Shim } from '../../native/abi.js'
import { checked } from '../../native/shim.js'
import type { EventQueue } from '../events/queue.js'
import type { EventCounts } from '../events/source.js'

/** Of the ring: 262 ms of a million small events a second. Memory is taken as it is first written to. */
const RING = 16 * 1024 * 1024
/** Copied out by one crossing. */
const DRAIN = 1024 * 1024
/** ms of draining before others get their turn. */
const SLICE = 2
/**
 * ms from a drain that found something to the next: few large drains cost less than many small ones, and each takes the
 * processor from the guest's vCPUs too. The first event after a quiet moment is fetched at once.
 */
const GATHER = 8
/** Bytes of records kept for a program whose number is not known yet. */
const UNCLAIMED = 4 * 1024 * 1024

/**
 * The consumer's end of the ring one agent writes to: gives each record to the subscription it belongs to.
 */
export class AgentRing {
  readonly #shim: Shim
  readonly #handle: number
  readonly #buffer = new Uint8Array(DRAIN)
  readonly #records = new Uint32Array(this.#buffer.buffer)
  readonly #queues = new Map<number, EventQueue>()
  readonly #onBroken: (reason: CloudAppError) => void
  #unclaimed: { readonly program: number; readonly records: Uint32Array; readonly count: number }[] = []
  #unclaimedBytes = 0
  #expecting = 0
  #timer: NodeJS.Timeout | NodeJS.Immediate | undefined
  #closed = false

  private constructor(shim: Shim, handle: number, onBroken: (reason: CloudAppError) => void) {
    this.#shim = shim
    this.#handle = handle
    this.#onBroken = onBroken
  }

  /**
   * @param start starts the producer with the ring's descriptor, which is closed afterwards
   * @param onBroken the producer wrote nonsense: the ring is done for
   */
  static async create<T>(
    shim: Shim,
    start: (fd: number) => Promise<T>,
    onBroken: (reason: CloudAppError) => void,
  ): Promise<{ ring: AgentRing; started: T }> {
    const fd = new Int32Array(1)
    const handle = checked(shim, shim.ca_ring_create(RING, new Uint8Array(fd.buffer)))
    try {
      return { started: await start(fd[0] as number), ring: new AgentRing(shim, handle, onBroken) }
    } catch (error) {
      checked(shim, shim.ca_ring_close(handle))
      throw error
    } finally {
      closeSync(fd[0] as number)
    }
  }

  /**
   * Runs `ask`, which learns a new program's number, and gives that program's records to the queue that `make` makes: also
   * those that came before the number was known here.
   */
  async claim(ask: () => Promise<number>, make: (program: number) => EventQueue): Promise<EventQueue> {
    this.#expecting++
    try {
      const program = await ask()
      const queue = make(program)
      this.#queues.set(program, queue)
      for (const early of this.#unclaimed) {
        if (early.program === program) queue.push(early.records, 0, early.count)
      }
      this.#unclaimed = this.#unclaimed.filter((early) => early.program !== program)
      return queue
    } finally {
      this.#expecting--
      if (this.#expecting === 0) {
        this.#unclaimed = []
        this.#unclaimedBytes = 0
      }
    }
  }

  /**
   * Forgets a program that the producer has ended. What it wrote before is taken out first, since its number will be
   * another's.
   */
  release(program: number): void {
    for (let left = RING; left > 0; ) {
      const drained = this.#drain()
      if (drained === 0) break
      left -= drained
    }
    this.#queues.delete(program)
  }

  /** What the producer has matched and lost of a program so far. */
  counts(program: number): EventCounts {
    const words = new BigUint64Array(2)
    checked(this.#shim, this.#shim.ca_ring_counts(this.#handle, program, words))
    return { dropped: Number(words[0]), matched: Number(words[1]) }
  }

  /** The producer says there is something. */
  wake(): void {
    if (this.#timer === undefined && !this.#closed) this.#work()
  }

  /** The subscriptions there are. */
  queues(): EventQueue[] {
    return [...this.#queues.values()]
  }

  /** Everything that is left, for who iterates on after the producer's end. */
  drainAll(): void {
    if (this.#closed) return
    for (let left = RING; left > 0; ) {
      const drained = this.#drain()
      if (drained === 0) return
      left -= drained
    }
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#stop()
    checked(this.#shim, this.#shim.ca_ring_close(this.#handle))
  }

  #work(): void {
    this.#timer = undefined
    const began = performance.now()
    let drained = 0
    do {
      drained = this.#drain()
      // 0: the next record raises a wake.
      if (drained === 0 || this.#closed) return
    } while (drained > DRAIN / 2 && performance.now() - began < SLICE)
    const again = () => this.#work()
    this.#timer = drained > DRAIN / 2 ? setImmediate(again) : setTimeout(again, GATHER)
  }

  #stop(): void {
    if (this.#timer === undefined) return
    if ('hasRef' in this.#timer && 'refresh' in this.#timer) clearTimeout(this.#timer)
    else clearImmediate(this.#timer as NodeJS.Immediate)
    this.#timer = undefined
  }

  /** One crossing; gives the bytes. */
  #drain(): number {
    let bytes: number
    try {
      bytes = checked(this.#shim, this.#shim.ca_ring_drain(this.#handle, this.#buffer, DRAIN))
    } catch (error) {
      this.#onBroken(error as CloudAppError)
      return 0
    }
    const records = this.#records
    const end = bytes / 4
    for (let at = 0; at < end; ) {
      const program = records[at + 1] as number
      const size = (records[at] as number) * 2
      let next = at + size
      // Records of one program have one size: those that follow one another are taken together.
      while (next < end && records[next + 1] === program) next += size
      this.#give(program, at, next, size)
      at = next
    }
    return bytes
  }

  #give(program: number, from: number, to: number, size: number): void {
    const queue = this.#queues.get(program)
    const count = (to - from) / size
    if (queue !== undefined) {
      if (size !== queue.program.recordWords * 2) {
        const reason = `the event agent wrote a record of ${size / 2} words for a program of ${queue.program.recordWords}`
        this.#onBroken(new CloudAppError('ERR_CLOUDAPP_SOURCE', reason))
        return
      }
      queue.push(this.#records, from, count)
    } else if (this.#expecting > 0 && this.#unclaimedBytes < UNCLAIMED) {
      const records = this.#records.slice(from, to)
      this.#unclaimedBytes += records.byteLength
      this.#unclaimed.push({ program, records, count })
    }
  }
}
