import { checkPlan } from './local-check.js'
import { ended, fault, type Operation, type Slice, scratch, type Workspace, word } from './local-operation.js'
import { Table, words } from './local-table.js'
import { type Fault, LIMITS, type WalkPlan, type WalkResult } from './memory.js'

/** enum ca_walk_kind. */
const KINDS = { list: 1, hlist: 2, hash: 3, rbtree: 4, xarray: 5, array: 6 } as const
/** enum ca_end. */
const ENDS = ['complete', 'limit', 'cycle', 'fault'] as const

const PLAN_WORDS = 12
const COLUMN_WORDS = 10
/** Result bytes of one crossing. */
const CHUNK = 64 * 1024

/** Past 32 bits a number's high half is that of its two's complement. */
const high = (value: number) => Math.floor(value / 2 ** 32)

/**
 * By halves: of the plan only its space and head are bigints, and to make one of each number would cost more than the walk.
 * Into the workspace if it fits, as usual.
 */
function encode(plan: WalkPlan, size: number, workspace: Workspace): BigUint64Array {
  const fits = size <= workspace.table.length
  const words = fits ? workspace.table : new BigUint64Array(size)
  const halves = fits ? workspace.halves : new Uint32Array(words.buffer)
  halves.fill(0, 0, 2 * size)
  const put = (at: number, value: number) => {
    halves[2 * at] = value
    halves[2 * at + 1] = high(value)
  }
  put(0, KINDS[plan.kind])
  words[1] = plan.space
  words[2] = plan.head
  if ('node' in plan) put(3, plan.node)
  put(4, plan.limit)
  if ('count' in plan) put(5, plan.count)
  if (plan.kind === 'array') {
    put(6, plan.stride)
    put(7, plan.pointers === true ? 1 : 0)
  }
  if (plan.kind === 'xarray') {
    put(8, plan.shiftOffset)
    put(9, plan.slotsOffset)
    put(10, plan.slots)
  }
  put(11, plan.columns.length)
  let at = PLAN_WORDS
  for (const { path, size } of plan.columns) {
    put(at, size)
    put(at + 1, path.length)
    for (let hop = 0; hop < path.length; hop++) put(at + 2 + hop, path[hop] as number)
    at += COLUMN_WORDS
  }
  return words
}

/** One structure walk. The columns of its table: addresses, those of the plan, the cells' states. */
export class WalkOperation implements Operation<WalkResult> {
  readonly #plan: WalkPlan
  readonly #planWords: number
  #encoded: BigUint64Array | undefined
  readonly #rowBytes: number
  #rows: number
  #maxRows: number
  readonly #table: Table
  #walked = false
  #end: WalkResult['end'] = 'complete'
  #fault: Fault | undefined
  #period = 0

  constructor(plan: WalkPlan) {
    this.#rowBytes = checkPlan(plan)
    this.#plan = plan
    this.#planWords = PLAN_WORDS + plan.columns.length * COLUMN_WORDS
    this.#table = new Table([8, ...plan.columns.map(({ size }) => size), plan.columns.length])
    // One row more than the limit, so that the same crossing finds out whether there was more.
    this.#rows = Math.min(plan.limit + 1, Math.max(1, Math.floor(CHUNK / this.#rowBytes)))
    this.#maxRows = Math.floor(LIMITS.resultBytes / this.#rowBytes)
  }

  /** Cuts the walk where its results take more than `room` bytes. */
  cutAt(room: number): void {
    this.#maxRows = Math.floor(room / this.#rowBytes)
    this.#rows = Math.min(this.#rows, this.#maxRows)
  }

  /** Result bytes held so far. */
  get bytes(): number {
    return this.#table.rows * this.#rowBytes
  }

  step(slice: Slice, workspace: Workspace): boolean {
    if (this.#walked) return this.#table.join()
    this.#walked = this.#walk(slice, workspace)
    return this.#walked && this.#table.whole
  }

  #walk({ shim, handle, flags, budget }: Slice, workspace: Workspace): boolean {
    const rows = this.#rows
    if (rows === 0) {
      this.#end = 'limit'
      return true
    }
    const size = rows * this.#rowBytes
    const out = scratch(workspace, size)
    this.#encoded ??= encode(this.#plan, this.#planWords, workspace)
    const result = shim.ca_walk(
      handle,
      flags,
      budget,
      this.#encoded,
      this.#planWords * 8,
      out,
      size,
      rows,
      workspace.cursor,
      workspace.status,
    )
    const done = ended(shim, result)
    this.#table.add(out, word(workspace, 0))
    if (done) {
      this.#end = ENDS[word(workspace, 1)] ?? 'fault'
      this.#period = word(workspace, 6)
      if (this.#end === 'fault') {
        const [, , , , address = 0n, entry = 0n] = workspace.status
        this.#fault = fault(word(workspace, 2), word(workspace, 3), address, entry)
      }
      return true
    }
    if (this.#table.rows + rows <= this.#maxRows) return false
    this.#end = 'limit'
    return true
  }

  result(consistent: boolean): WalkResult {
    const rows = this.#end === 'cycle' ? distinctRows(words(this.#table.columns()[0]), this.#period) : this.#table.rows
    const [addresses, ...columns] = this.#table.columns(rows)
    const cells = columns.pop() as Uint8Array
    return {
      rows,
      addresses: words(addresses),
      columns,
      cells,
      end: this.#end,
      ...(this.#fault === undefined ? {} : { fault: this.#fault }),
      consistent,
    }
  }
}

/**
 * Rows before the first repetition. Brent's method notices a cycle only after going round it, and gives its period:
 * the elements in it repeat from the first address on that is found again one period later.
 */
function distinctRows(addresses: BigUint64Array, period: number): number {
  if (period === 0) return addresses.length
  // By halves: a bigint of each would cost more than all the rest.
  const halves = new Uint32Array(addresses.buffer, addresses.byteOffset, addresses.length * 2)
  for (let i = 0; i + period < addresses.length; i++) {
    const [here, there] = [2 * i, 2 * (i + period)]
    if (halves[here] === halves[there] && halves[here + 1] === halves[there + 1]) return i + period
  }
  return addresses.length
}
