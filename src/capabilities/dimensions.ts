import { type Caveats, TOKEN_LIMITS, TRANSPORTS, type TransportName } from './caveats.js'
import { isPublicKey, PUBLIC_KEY_BYTES, publicKeyBytes, publicKeyFromBytes } from './keys.js'
import { type AddressRange, areCanonical } from './ranges.js'
import {
  compareProcesses,
  type MemoryScope,
  meetMemory,
  memoryWithin,
  type ProcessScope,
  processesWithin,
  processScopeFault,
} from './scope.js'

/** Thrown by a decoder; block.ts makes it an error that names the block. */
export class Malformed extends Error {}

/**
 * One way to narrow. `within` decides whether a block may write `inner` where `outer` holds; `meet` is what holds after
 * both. Where `within(b, a)`: `within(meet(a, b), a)` and `within(meet(a, b), b)`.
 */
export interface Dimension<T> {
  /** Key in the caveat map. Never reused. */
  readonly code: number
  encode(value: T): unknown
  /** @throws Malformed */
  decode(value: unknown): T
  /** Why a caller's value can not be written, or undefined. */
  fault(value: T): string | undefined
  within(inner: T, outer: T): boolean
  meet(a: T, b: T): T
}

export type CaveatName = keyof Caveats
type Value<K extends CaveatName> = NonNullable<Caveats[K]>

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0

/** A number where less is narrower. */
function ceiling(code: number): Dimension<number> {
  return {
    code,
    encode: (value) => value,
    decode: (value) => (isCount(value) ? value : malformed('a number below 2^53 is needed')),
    fault: (value) => (isCount(value) ? undefined : 'must be a whole number from 0 to 2^53-1'),
    within: (inner, outer) => inner <= outer,
    meet: (a, b) => Math.min(a, b),
  }
}

const notBefore: Dimension<number> = {
  ...ceiling(1),
  within: (inner, outer) => inner >= outer,
  meet: (a, b) => Math.max(a, b),
}

const audience: Dimension<Value<'audience'>> = {
  code: 3,
  encode: (value) => publicKeyBytes(value),
  decode: (value) =>
    value instanceof Uint8Array && value.length === PUBLIC_KEY_BYTES
      ? publicKeyFromBytes(value)
      : malformed('a key of 32 bytes is needed'),
  fault: (value) => (isPublicKey(value) ? undefined : 'must be a public key'),
  within: (inner, outer) => inner === outer,
  // Two audiences never get here: `within` refuses the block first.
  meet: (a) => a,
}

const transportOf = new Map<unknown, TransportName>(
  (Object.keys(TRANSPORTS) as TransportName[]).map((name) => [TRANSPORTS[name], name]),
)

const transports: Dimension<readonly TransportName[]> = {
  code: 4,
  encode: (value) => [...new Set(value.map((name) => TRANSPORTS[name]))].sort((a, b) => a - b),
  decode: (value) => {
    const codes = ascending(value, transportOf.size)
    return codes.map((code) => transportOf.get(code) ?? malformed('an unknown transport'))
  },
  fault: (value) => (value.every((name) => Object.hasOwn(TRANSPORTS, name)) ? undefined : 'names an unknown transport'),
  within: (inner, outer) => inner.every((name) => outer.includes(name)),
  meet: (a, b) => a.filter((name) => b.includes(name)),
}

const syscalls: Dimension<readonly number[]> = {
  code: 12,
  encode: (value) => [...new Set(value)].sort((a, b) => a - b),
  decode: (value) => {
    const numbers = ascending(value, TOKEN_LIMITS.syscalls)
    if ((numbers.at(-1) ?? 0) >= TOKEN_LIMITS.syscallNumber) malformed('a system-call number is too large')
    return numbers
  },
  fault: (value) => {
    if (value.length > TOKEN_LIMITS.syscalls) return `names more than ${TOKEN_LIMITS.syscalls} system calls`
    const good = value.every((number) => isCount(number) && number < TOKEN_LIMITS.syscallNumber)
    return good ? undefined : 'holds a number that is no system call'
  },
  within: (inner, outer) => subset(inner, outer),
  meet: (a, b) => {
    const other = new Set(b)
    return a.filter((number) => other.has(number))
  },
}

const MEMORY_PARTS = [
  [1, 'physical'],
  [2, 'kernel'],
  [3, 'process'],
] as const

const memory: Dimension<MemoryScope> = {
  code: 10,
  encode: (value) => {
    const out = new Map<number, unknown>()
    for (const [code, part] of MEMORY_PARTS) {
      const ranges = value[part]
      if (ranges !== undefined && ranges.length > 0)
        out.set(
          code,
          ranges.map(({ first, last }) => [first, last]),
        )
    }
    return out
  },
  decode: (value) => {
    if (!(value instanceof Map)) return malformed('a map of ranges is needed')
    const out: { -readonly [K in keyof MemoryScope]: readonly AddressRange[] } = {}
    let known = 0
    for (const [code, part] of MEMORY_PARTS) {
      const ranges: unknown = value.get(code)
      if (ranges === undefined) continue
      known++
      out[part] = decodeRanges(ranges)
    }
    if (known !== value.size) malformed('an unknown kind of memory')
    return out
  },
  fault: (value) => {
    if (typeof value !== 'object' || Array.isArray(value))
      return 'must be an object with physical, kernel or process ranges'
    const unknown = Object.keys(value).find((key) => !MEMORY_PARTS.some(([, part]) => part === key))
    if (unknown !== undefined) return `knows no '${unknown.slice(0, 64)}', only physical, kernel and process`
    for (const [, part] of MEMORY_PARTS) {
      const ranges = value[part] ?? []
      if (ranges.length > TOKEN_LIMITS.ranges) return `has more than ${TOKEN_LIMITS.ranges} ${part} ranges`
      if (!areCanonical(ranges)) return `needs its ${part} ranges ascending, apart and below 2^64 (see canonicalRanges)`
    }
    return undefined
  },
  within: memoryWithin,
  meet: meetMemory,
}

const processes: Dimension<readonly ProcessScope[]> = {
  code: 11,
  encode: (value) =>
    [...value].sort(compareProcesses).map(({ name, cgroup }) => {
      const out = new Map<number, string>()
      if (name !== undefined) out.set(1, name)
      if (cgroup !== undefined) out.set(2, cgroup)
      return out
    }),
  decode: (value) => {
    const list = listOf(value, TOKEN_LIMITS.processes).map(decodeProcess)
    for (let i = 1; i < list.length; i++) {
      if (compareProcesses(list[i - 1] as ProcessScope, list[i] as ProcessScope) >= 0)
        malformed('processes out of order')
    }
    return list
  },
  fault: (value) => {
    if (value.length > TOKEN_LIMITS.processes) return `names more than ${TOKEN_LIMITS.processes} processes`
    const sorted = [...value].sort(compareProcesses)
    if (sorted.some((scope, i) => i > 0 && compareProcesses(sorted[i - 1] as ProcessScope, scope) === 0)) {
      return 'names a process twice'
    }
    return value.map(processScopeFault).find((fault) => fault !== undefined)
  },
  within: processesWithin,
  meet: (a, b) => {
    // Only ever used where `within(b, a)` holds, or where b repeats a: the narrower list is the meet.
    return processesWithin(a, b) ? a : b
  },
}

/** Every dimension by name; the code order is the order in the file. */
export const DIMENSIONS: { readonly [K in CaveatName]-?: Dimension<Value<K>> } = {
  notBefore,
  expires: ceiling(2),
  audience,
  transports,
  uses: ceiling(5),
  outputBytes: ceiling(6),
  bytesPerSecond: ceiling(7),
  operationsPerSecond: ceiling(8),
  pauseMsPerMinute: ceiling(9),
  memory,
  processes,
  syscalls,
}

export const CAVEAT_NAMES: readonly CaveatName[] = Object.freeze(Object.keys(DIMENSIONS) as CaveatName[])

function decodeProcess(value: unknown): ProcessScope {
  if (!(value instanceof Map)) return malformed('a process scope must be a map')
  const name: unknown = value.get(1)
  const cgroup: unknown = value.get(2)
  const known = (name === undefined ? 0 : 1) + (cgroup === undefined ? 0 : 1)
  if (known !== value.size) return malformed('an unknown condition on processes')
  if (name !== undefined && typeof name !== 'string') return malformed('a process name must be text')
  if (cgroup !== undefined && typeof cgroup !== 'string') return malformed('a cgroup must be text')
  const scope = { ...(name === undefined ? {} : { name }), ...(cgroup === undefined ? {} : { cgroup }) }
  const fault = processScopeFault(scope)
  return fault === undefined ? scope : malformed(fault)
}

function decodeRanges(value: unknown): AddressRange[] {
  const list = listOf(value, TOKEN_LIMITS.ranges)
  if (list.length === 0) malformed('an empty list of ranges')
  const ranges = list.map((pair) => {
    if (!Array.isArray(pair) || pair.length !== 2) return malformed('a range is a pair')
    return { first: address(pair[0]), last: address(pair[1]) }
  })
  return areCanonical(ranges) ? ranges : malformed('ranges out of order')
}

function address(value: unknown): bigint {
  if (typeof value === 'bigint') return value
  return isCount(value) ? BigInt(value) : malformed('an address is needed')
}

function ascending(value: unknown, most: number): number[] {
  let before = -1
  return listOf(value, most).map((item) => {
    if (!isCount(item) || item <= before) return malformed('numbers out of order')
    before = item
    return item
  })
}

function listOf(value: unknown, most: number): unknown[] {
  return Array.isArray(value) && value.length <= most ? value : malformed(`a list of at most ${most} is needed`)
}

function subset(inner: readonly number[], outer: readonly number[]): boolean {
  const allowed = new Set(outer)
  return inner.every((number) => allowed.has(number))
}

function malformed(why: string): never {
  throw new Malformed(why)
}
