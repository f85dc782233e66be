import { checkLimit } from '../../vmi/local-check.js'
import { CellState, type Column, LIMITS, type WalkPlan, type WalkResult } from '../../vmi/memory.js'
import { type ByteReader, ByteWriter, decodeMessage, decodeWith, inTable, malformed } from './bytes.js'
import { readFault, writeFault } from './read.js'

// The order is the number on the wire.
const KINDS = ['list', 'hlist', 'hash', 'rbtree', 'xarray', 'array'] as const
const ENDS = ['complete', 'limit', 'cycle', 'fault'] as const

/** A batch of walks: count, then for each kind, space, head, limit, columns, and what its kind needs. */
export function encodeWalks(plans: readonly WalkPlan[]): Uint8Array {
  checkLimit('batch', plans.length)
  const writer = new ByteWriter()
  writer.u32(plans.length)
  for (const plan of plans) {
    checkLimit('columns', plan.columns.length)
    checkLimit('walkRows', plan.limit)
    writer.u8(KINDS.indexOf(plan.kind))
    writer.u64(BigInt.asUintN(64, plan.space))
    writer.u64(BigInt.asUintN(64, plan.head))
    writer.u32(plan.limit)
    writer.u8(plan.columns.length)
    for (const { path, size } of plan.columns) {
      checkLimit('pathLength', path.length)
      checkLimit('columnSize', size)
      writer.u8(path.length)
      for (const offset of path) writer.integer(offset)
      writer.u32(size)
    }
    encodeKind(writer, plan)
  }
  return writer.done()
}

function encodeKind(writer: ByteWriter, plan: WalkPlan): void {
  switch (plan.kind) {
    case 'list':
    case 'hlist':
    case 'rbtree':
      writer.integer(plan.node)
      return
    case 'hash':
      writer.integer(plan.node)
      writer.u32(plan.count)
      return
    case 'xarray':
      writer.integer(plan.shiftOffset)
      writer.integer(plan.slotsOffset)
      writer.u32(plan.slots)
      return
    case 'array':
      writer.u32(plan.count)
      writer.integer(plan.stride)
      writer.u8(plan.pointers === true ? 1 : 0)
  }
}

/** @throws CloudAppError `ERR_CLOUDAPP_PROTOCOL`, `ERR_CLOUDAPP_LIMIT` */
export function decodeWalks(message: unknown): { readonly plans: WalkPlan[]; readonly resultBytes: number } {
  return decodeWith(message, (reader) => {
    const count = reader.u32()
    checkLimit('batch', count)
    const plans: WalkPlan[] = []
    let resultBytes = 0
    for (let i = 0; i < count; i++) {
      const plan = decodePlan(reader)
      plans.push(plan)
      let row = 8 + plan.columns.length
      for (const { size } of plan.columns) row += size
      // The rows a structure has are known only after the walk: what it may have at most is what is set aside.
      resultBytes = Math.min(resultBytes + row * plan.limit, LIMITS.resultBytes)
    }
    return { plans, resultBytes }
  })
}

function decodePlan(reader: ByteReader): WalkPlan {
  const kind = KINDS[reader.u8()]
  const space = reader.u64()
  const head = reader.u64()
  const limit = reader.u32()
  checkLimit('walkRows', limit)
  const columns: Column[] = []
  const columnCount = reader.u8()
  checkLimit('columns', columnCount)
  for (let i = 0; i < columnCount; i++) {
    const path: number[] = []
    const steps = reader.u8()
    checkLimit('pathLength', steps)
    for (let step = 0; step < steps; step++) path.push(reader.integer())
    const size = reader.u32()
    checkLimit('columnSize', size)
    columns.push({ path, size })
  }
  const common = { space, head, limit, columns }
  switch (kind) {
    case 'list':
    case 'hlist':
    case 'rbtree':
      return { kind, ...common, node: reader.integer() }
    case 'hash':
      return { kind, ...common, node: reader.integer(), count: reader.u32() }
    case 'xarray':
      return { kind, ...common, shiftOffset: reader.integer(), slotsOffset: reader.integer(), slots: reader.u32() }
    case 'array':
      return { kind, ...common, count: reader.u32(), stride: reader.integer(), pointers: reader.flag() }
    default:
      throw malformed('an unknown structure')
  }
}

export function encodeWalkResults(results: readonly WalkResult[]): Uint8Array[] {
  let size = 4
  for (const { addresses, columns, cells } of results) {
    size += 25 + inTable(addresses) + inTable(cells)
    for (const column of columns) size += inTable(column)
  }
  const writer = new ByteWriter(size)
  writer.u32(results.length)
  for (const result of results) {
    writer.u8(result.consistent ? 1 : 0)
    writer.u8(ENDS.indexOf(result.end))
    writer.u8(result.fault === undefined ? 0 : 1)
    if (result.fault !== undefined) writeFault(writer, result.fault)
    writer.u32(result.rows)
    writer.large(result.addresses)
    for (const column of result.columns) writer.large(column)
    writer.large(result.cells)
  }
  return writer.message()
}

/** @throws CloudAppError `ERR_CLOUDAPP_PROTOCOL` */
export function decodeWalkResults(message: unknown, plans: readonly WalkPlan[]): WalkResult[] {
  return decodeMessage(message, (reader) => {
    if (reader.u32() !== plans.length) throw malformed('not as many results as plans')
    return plans.map((plan) => {
      const consistent = reader.flag()
      const end = ENDS[reader.u8()]
      if (end === undefined) throw malformed('an unknown end of a walk')
      const fault = reader.flag() ? readFault(reader) : undefined
      const rows = reader.u32()
      if (rows > plan.limit) throw malformed('more rows than asked')
      const addresses = reader.largeU64s(rows)
      const columns = plan.columns.map(({ size }) => reader.large(rows * size))
      const cells = reader.large(rows * columns.length)
      for (const cell of cells) if (cell > CellState.Fault) throw malformed('an unknown cell state')
      return { rows, addresses, columns, cells, end, consistent, ...(fault === undefined ? {} : { fault }) }
    })
  })
}
