import type { AddressRange } from '../../capabilities/ranges.js'
import { checkLimit, checkPlan } from '../../vmi/local-check.js'
import {
  type CallOptions,
  CellState,
  type Column,
  type GuestMemory,
  LIMITS,
  type WalkPlan,
  type WalkResult,
} from '../../vmi/memory.js'
import { CheckedReader } from './checked-reader.js'
import { iterate } from './structures.js'

/** Rows of one walk; more is `limit`. Each takes some hundred bytes of the broker's memory while it is walked. */
const MAX_ROWS = 131_072

/** Rows whose columns are fetched together. */
const ROWS_AT_ONCE = 1024

/**
 * Walks structures with every address checked against the scope before it is read, also those that the guest's own
 * pointers lead to. Slower than a walk in the native library, which follows pointers unasked.
 *
 * @param held names the pause that holds the VM now: many reads belong together only within one
 */
export async function scopedWalk(
  memory: GuestMemory,
  rangesOf: (space: bigint) => readonly AddressRange[],
  plans: readonly WalkPlan[],
  { held, ...call }: Required<CallOptions> & { readonly held: () => unknown },
): Promise<WalkResult[]> {
  checkLimit('batch', plans.length)
  const sizes = plans.map(checkPlan)
  let room: number = LIMITS.resultBytes
  const results: WalkResult[] = []
  for (const [i, plan] of plans.entries()) {
    const rowBytes = sizes[i] as number
    const most = Math.min(plan.limit, MAX_ROWS, Math.floor(room / rowBytes))
    const reader = new CheckedReader(memory, plan.space, rangesOf(plan.space), call)
    const pause = held()
    const elements: bigint[] = []
    const ended = await iterate(plan, reader, (element) => elements.length < most && elements.push(element) > 0)
    room -= elements.length * rowBytes
    const cells = new Uint8Array(elements.length * plan.columns.length)
    const columns: Uint8Array[] = []
    for (const [n, column] of plan.columns.entries()) {
      columns.push(await columnOf(reader, elements, column, cells, n, plan.columns.length))
    }
    const addresses = BigUint64Array.from(elements)
    const consistent = reader.consistent && pause !== undefined && held() === pause
    results.push({ rows: elements.length, addresses, columns, cells, ...ended, consistent })
  }
  return results
}

async function columnOf(
  reader: CheckedReader,
  elements: readonly bigint[],
  { path, size }: Column,
  cells: Uint8Array,
  column: number,
  width: number,
): Promise<Uint8Array> {
  const out = new Uint8Array(elements.length * size)
  for (let from = 0; from < elements.length; from += ROWS_AT_ONCE) {
    // Rows still on their way, and where each has come to.
    let rows = Array.from({ length: Math.min(ROWS_AT_ONCE, elements.length - from) }, (_, i) => from + i)
    let at = rows.map((row) => elements[row] as bigint)
    for (const [step, offset] of path.entries()) {
      const last = step === path.length - 1
      const length = last ? size : 8
      const places = at.map((address) => BigInt.asUintN(64, address + BigInt(offset)))
      const { bytes, faults } = await reader.many(places, length)
      const words = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
      const nextRows: number[] = []
      const nextAt: bigint[] = []
      for (const [i, row] of rows.entries()) {
        const cell = row * width + column
        if (faults.has(i)) {
          cells[cell] = CellState.Fault
        } else if (last) {
          out.set(bytes.subarray(i * length, (i + 1) * length), row * size)
        } else {
          const pointer = words.readBigUInt64LE(i * 8)
          if (pointer === 0n) cells[cell] = CellState.Null
          else {
            nextRows.push(row)
            nextAt.push(pointer)
          }
        }
      }
      rows = nextRows
      at = nextAt
    }
  }
  return out
}
