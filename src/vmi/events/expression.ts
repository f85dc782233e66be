import { checkName, checkObject, checkWord, malformed, tooLarge } from './check.js'
import {
  EVENT_FIELDS,
  EVENT_LIMITS,
  EVENT_REGISTERS,
  type EventField,
  type EventRegister,
  type Trap,
} from './program.js'

/** enum ca_operation of cloudapp_events.h. */
export const OPERATION = {
  constant: 1,
  register: 2,
  field: 3,
  load: 4,
  add: 5,
  subtract: 6,
  and: 7,
  or: 8,
  xor: 9,
  shiftLeft: 10,
  shiftRight: 11,
  equal: 12,
  less: 13,
  not: 14,
} as const

const FIELDS = Object.keys(EVENT_FIELDS) as EventField[]
const { add, subtract, and, or, xor, shiftLeft, shiftRight, equal, less, not } = OPERATION

/** Each operator: whether its operands change places, and the operations that follow them. */
const OPERATORS: Readonly<Record<string, { readonly swapped?: true; readonly codes: readonly number[] }>> = {
  '+': { codes: [add] },
  '-': { codes: [subtract] },
  '&': { codes: [and] },
  '|': { codes: [or] },
  '^': { codes: [xor] },
  '<<': { codes: [shiftLeft] },
  '>>': { codes: [shiftRight] },
  '==': { codes: [equal] },
  '!=': { codes: [equal, not] },
  '<': { codes: [less] },
  '>': { swapped: true, codes: [less] },
  '<=': { swapped: true, codes: [less, not] },
  '>=': { codes: [less, not] },
  // A word that is not 0 counts as true: each side is made 0 or 1 first.
  and: { codes: [and] },
  or: { codes: [or] },
}
const WORDS = ['load', 'not', ...Object.keys(OPERATORS)]

/** What a program looks at, for the check against a capability. */
export interface Uses {
  readonly registers: Set<EventRegister>
  /** Reads guest memory. */
  memory: boolean
}

/** Compiles an expression to the postfix table of cloudapp_events.h, checking it on the way. */
export class ExpressionCompiler {
  /** Pairs of words { opcode, operand }. */
  readonly words: bigint[] = []
  readonly #trap: Trap['kind']
  readonly #uses: Uses
  #depth = 0
  #nodes = 0

  constructor(trap: Trap['kind'], uses: Uses) {
    this.#trap = trap
    this.#uses = uses
  }

  /**
   * @returns true if the result is always 0 or 1
   * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT`, `ERR_CLOUDAPP_LIMIT`, naming the place
   */
  compile(place: string, value: unknown): boolean {
    // Counted on the way down, so that no peer's nesting, however deep, is followed further.
    if (++this.#nodes > EVENT_LIMITS.predicate) throw tooLarge(place, 'predicate', EVENT_LIMITS.predicate)
    if (typeof value === 'bigint') return this.#emit(place, OPERATION.constant, checkWord(place, value), 1)
    if (Array.isArray(value)) return this.#operation(place, value)
    if (typeof value !== 'object' || value === null) {
      throw malformed(place, 'must be a bigint, { register }, { field } or an operation [operator, …]')
    }
    if ('register' in value) {
      const { register } = checkObject(place, value, ['register'])
      const index = checkRegister(`${place}.register`, register, this.#uses)
      return this.#emit(place, OPERATION.register, BigInt(index), 1)
    }
    const { field } = checkObject(place, value, ['field'])
    return this.#emit(place, OPERATION.field, BigInt(checkField(`${place}.field`, field, this.#trap)), 1)
  }

  #operation(place: string, value: readonly unknown[]): boolean {
    const [operator, a, b] = value
    checkName(`${place}[0]`, operator, WORDS)
    const arity = operator === 'not' ? 2 : 3
    if (value.length !== arity) throw malformed(place, `'${String(operator)}' takes ${arity - 1} operands`)
    if (operator === 'not') {
      this.compile(`${place}[1]`, a)
      this.#emit(place, not, 0n, 0)
      return true
    }
    if (operator === 'load') {
      this.compile(`${place}[1]`, a)
      if (b !== 1 && b !== 2 && b !== 4 && b !== 8) throw malformed(`${place}[2]`, 'must be 1, 2, 4 or 8 bytes')
      this.#uses.memory = true
      return this.#emit(place, OPERATION.load, BigInt(b), 0)
    }
    const { swapped, codes } = OPERATORS[operator as string] as (typeof OPERATORS)[string]
    const truth = operator === 'and' || operator === 'or'
    for (const index of swapped === true ? [2, 1] : [1, 2]) {
      const isTruth = this.compile(`${place}[${index}]`, value[index])
      if (!truth || isTruth) continue
      this.#emit(place, not, 0n, 0)
      this.#emit(place, not, 0n, 0)
    }
    for (const code of codes) this.#emit(place, code, 0n, code === not ? 0 : -1)
    return truth || codes[0] === equal || codes[0] === less
  }

  /** @returns false: what is pushed may be any word */
  #emit(place: string, code: number, operand: bigint, grows: number): false {
    this.#depth += grows
    if (this.#depth > EVENT_LIMITS.stack) throw tooLarge(place, 'stack', EVENT_LIMITS.stack)
    this.words.push(BigInt(code), operand)
    if (this.words.length / 2 > EVENT_LIMITS.predicate) throw tooLarge(place, 'predicate', EVENT_LIMITS.predicate)
    return false
  }
}

/** The number of a register in enum ca_register; noted as looked at. */
export function checkRegister(place: string, value: unknown, uses: Uses): number {
  const index = checkName(place, value, EVENT_REGISTERS)
  uses.registers.add(EVENT_REGISTERS[index] as EventRegister)
  return index
}

/** The number of a field in enum ca_field, if this trap tells it. */
export function checkField(place: string, value: unknown, trap: Trap['kind']): number {
  const index = checkName(place, value, FIELDS)
  const name = FIELDS[index] as EventField
  const tells: readonly Trap['kind'][] = EVENT_FIELDS[name]
  if (!tells.includes(trap)) throw malformed(place, `a ${trap} trap does not tell ${name} (${tells.join(', ')} do)`)
  return index + 1
}
