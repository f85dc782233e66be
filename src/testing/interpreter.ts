import { OPERATION } from '../vmi/events/expression.js'
import { EVENT_FIELDS, EVENT_REGISTERS, type EventField, type EventRegister } from '../vmi/events/program.js'
import type { FaultReason } from '../vmi/memory.js'

/** What an event looks like to a program. */
export interface Moment {
  readonly registers: Readonly<Partial<Record<EventRegister, bigint>>>
  readonly fields: Readonly<Partial<Record<EventField, bigint>>>
  /** Bytes of the present address space: as many as could be read, and why not all. */
  read(address: bigint, length: number): { readonly bytes: Uint8Array; readonly fault?: FaultReason }
}

/** Words of a program's head, and of a capture: cloudapp_events.h. */
const HEAD = { predicate: 4, captures: 5, words: 8 } as const
const CAPTURE_WORDS = 8
const FIELDS = Object.keys(EVENT_FIELDS) as EventField[]

const u64 = (value: bigint) => BigInt.asUintN(64, value)
const truth = (value: boolean) => (value ? 1n : 0n)

const register = ({ registers }: Moment, index: bigint) =>
  registers[EVENT_REGISTERS[Number(index)] as EventRegister] ?? 0n
const field = ({ fields }: Moment, index: bigint) => fields[FIELDS[Number(index) - 1] as EventField] ?? 0n

function word(moment: Moment, address: bigint, length: number): bigint | undefined {
  const { bytes } = moment.read(u64(address), length)
  if (bytes.length < length) return undefined
  return bytes.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n)
}

/** What the agent does with a predicate, in JavaScript: the words are those of a compiled program. */
export function matches(words: BigUint64Array, moment: Moment): boolean {
  const count = Number(words[HEAD.predicate])
  if (count === 0) return true
  const stack: bigint[] = []
  const pop = () => stack.pop() as bigint
  for (let i = 0; i < count; i++) {
    const code = Number(words[HEAD.words + i * 2])
    const operand = words[HEAD.words + i * 2 + 1] as bigint
    if (code === OPERATION.constant) stack.push(operand)
    else if (code === OPERATION.register) stack.push(register(moment, operand))
    else if (code === OPERATION.field) stack.push(field(moment, operand))
    else if (code === OPERATION.not) stack.push(truth(pop() === 0n))
    else if (code === OPERATION.load) {
      const value = word(moment, pop(), Number(operand))
      if (value === undefined) return false
      stack.push(value)
    } else {
      const b = pop()
      stack.push(binary(code, pop(), b))
    }
  }
  return pop() !== 0n
}

function binary(code: number, a: bigint, b: bigint): bigint {
  switch (code) {
    case OPERATION.add:
      return u64(a + b)
    case OPERATION.subtract:
      return u64(a - b)
    case OPERATION.and:
      return a & b
    case OPERATION.or:
      return a | b
    case OPERATION.xor:
      return a ^ b
    case OPERATION.shiftLeft:
      return b > 63n ? 0n : u64(a << b)
    case OPERATION.shiftRight:
      return b > 63n ? 0n : a >> b
    case OPERATION.equal:
      return truth(a === b)
    default:
      return truth(a < b)
  }
}

const REASONS: readonly (FaultReason | undefined)[] = [
  undefined,
  'not-present',
  'non-canonical',
  'reserved-bit',
  'outside-ram',
  'source',
]

/** Writes the captures of a compiled program behind the head of a record. */
export function capture(words: BigUint64Array, moment: Moment, record: BigUint64Array, from: number): void {
  const bytesOf = new Uint8Array(record.buffer)
  let at = from
  const first = HEAD.words + Number(words[HEAD.predicate]) * 2
  for (let i = 0; i < Number(words[HEAD.captures]); i++) {
    const table = words.subarray(first + i * CAPTURE_WORDS, first + (i + 1) * CAPTURE_WORDS)
    const [kind = 0n, what = 0n, bytes = 0n, hops = 0n] = table
    if (kind <= 2n) {
      record[at++] = kind === 1n ? register(moment, what) : field(moment, what)
      continue
    }
    const got = fetch(moment, register(moment, what), table.subarray(4, 5 + Number(hops)), Number(bytes), kind === 4n)
    const reason = Math.max(REASONS.indexOf(got.fault), 0)
    record[at] = BigInt(got.bytes.length) | (BigInt(reason) << 32n)
    bytesOf.set(got.bytes, (at + 1) * 8)
    at += 1 + Math.ceil(Number(bytes) / 8)
  }
}

function fetch(moment: Moment, start: bigint, path: BigUint64Array, bytes: number, text: boolean) {
  let address = u64(start + (path[0] as bigint))
  for (const offset of path.subarray(1)) {
    const hop = moment.read(address, 8)
    if (hop.bytes.length < 8) return { bytes: new Uint8Array(0), ...(hop.fault ? { fault: hop.fault } : {}) }
    address = u64((word(moment, address, 8) ?? 0n) + offset)
  }
  const got = moment.read(address, bytes)
  const end = text ? got.bytes.indexOf(0) : -1
  return end < 0 ? got : { bytes: got.bytes.subarray(0, end) }
}
