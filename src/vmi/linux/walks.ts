import { CloudAppError } from '../../errors.js'
import {
  type CallOptions,
  CellState,
  type Fault,
  type MemoryReader,
  type WalkPlan,
  type WalkResult,
} from '../memory.js'
import { corrupt } from './errors.js'
import { textAt, view } from './read.js'

/** How a list ended; as {@link WalkResult.end}. */
export interface WalkEnd {
  readonly end: WalkResult['end']
  /** Where it could not be followed, for `fault`. */
  readonly fault?: Fault
  /** True if the VM was paused throughout. */
  readonly consistent: boolean
}

/** A live list that changed under the walk is walked again so many times before it counts as broken. */
const ATTEMPTS = 4

/**
 * Runs walks as one batch; those of a running VM that end in a cycle or a fault are run again, since an element freed
 * under the walk looks just so. The last result stands.
 */
export async function walkSteadily(
  memory: MemoryReader,
  plans: readonly WalkPlan[],
  options?: CallOptions,
): Promise<WalkResult[]> {
  const results = await memory.walk(plans, options)
  for (let attempt = 1; attempt < ATTEMPTS; attempt++) {
    const broken: number[] = []
    for (let i = 0; i < results.length; i++) {
      const result = results[i] as WalkResult
      if ((result.end === 'cycle' || result.end === 'fault') && !result.consistent) broken.push(i)
    }
    if (broken.length === 0) break
    const again = await memory.walk(
      broken.map((i) => plans[i] as WalkPlan),
      options,
    )
    for (const [n, i] of broken.entries()) results[i] = again[n] as WalkResult
  }
  if (results.length !== plans.length)
    throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `the source answered ${results.length} of ${plans.length} walks`)
  return results
}

/** Elements of each structure that {@link walkMany} fetches at first. */
const FEW = 256

/**
 * {@link walkSteadily} for many structures that are short on a sound guest: `total` elements together, or a batch more.
 * Without it, lists of a guest that lead into one long list have as many elements as there are pairs of them. What is
 * left out ends in `limit`.
 */
export async function walkMany(
  memory: MemoryReader,
  plans: readonly WalkPlan[],
  total: number,
  options?: CallOptions,
): Promise<WalkResult[]> {
  const few = plans.map((plan) => (plan.limit <= FEW ? plan : { ...plan, limit: FEW }))
  const results = await walkSteadily(memory, few, options)
  let rows = results.reduce((sum, result) => sum + result.rows, 0)
  for (const [i, plan] of plans.entries()) {
    if (results[i]?.end !== 'limit' || plan.limit <= FEW) continue
    if (rows > total) break
    const [whole] = (await walkSteadily(memory, [plan], options)) as [WalkResult]
    rows += whole.rows
    results[i] = whole
  }
  return results
}

/** Throws what a list that did not end well is: `what` names it, `head` is where it starts. */
export function throwUnlessComplete(
  what: string,
  head: bigint,
  limit: number,
  result: WalkEnd & { rows: number },
): void {
  switch (result.end) {
    case 'complete':
      return
    case 'limit':
      throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `${what} has more than ${limit} elements`, {
        address: head,
        details: { limit },
      })
    case 'cycle':
      throw corrupt(`${what} returns into itself after ${result.rows} elements, not to its head`, head)
    case 'fault':
      throw corrupt(
        `${what} can not be followed after ${result.rows} elements (${result.fault?.reason ?? 'unknown'})`,
        result.fault?.address ?? head,
        { details: { head, rows: result.rows } },
      )
  }
}

/** Typed access to the columns of a walk, by column and row. */
export class Rows {
  readonly count: number
  readonly addresses: BigUint64Array
  readonly #views: DataView[]
  readonly #bytes: readonly Uint8Array[]
  readonly #letters: Buffer[] = []
  readonly #sizes: number[]
  readonly #cells: Uint8Array

  constructor(result: WalkResult, plan: WalkPlan) {
    this.count = result.rows
    this.addresses = result.addresses
    this.#bytes = result.columns
    this.#views = result.columns.map(view)
    this.#sizes = plan.columns.map((column) => column.size)
    this.#cells = result.cells
  }

  /** True if the field could be read: no pointer on its path was null or wild. */
  ok(column: number, row: number): boolean {
    return this.#cells[row * this.#sizes.length + column] === CellState.Ok
  }

  u32(column: number, row: number): number {
    return (this.#views[column] as DataView).getUint32(row * (this.#sizes[column] as number), true)
  }

  i32(column: number, row: number): number {
    return (this.#views[column] as DataView).getInt32(row * (this.#sizes[column] as number), true)
  }

  u64(column: number, row: number): bigint {
    return (this.#views[column] as DataView).getBigUint64(row * (this.#sizes[column] as number), true)
  }

  /** False if the u64 is 0: told without making a bigint of it. */
  some(column: number, row: number): boolean {
    const view = this.#views[column] as DataView
    const at = row * (this.#sizes[column] as number)
    return (view.getUint32(at) | view.getUint32(at + 4)) !== 0
  }

  /** The text of a fixed field: up to its first NUL, or all of it. */
  text(column: number, row: number): string {
    const bytes = this.#bytes[column] as Uint8Array
    this.#letters[column] ??= Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    const size = this.#sizes[column] as number
    return textAt(this.#letters[column], row * size, size)
  }

  bytes(column: number, row: number): Uint8Array {
    const size = this.#sizes[column] as number
    return (this.#bytes[column] as Uint8Array).subarray(row * size, (row + 1) * size)
  }
}
