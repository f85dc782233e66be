import { isIP } from 'node:net'
import { CloudAppError } from '../../errors.js'
import { ENUMS } from './enums.js'
import { ATTRIBUTES, CLASSES, OCSF_VERSION } from './facts.js'
import { SCALARS } from './scalars.js'

/** The OCSF classes this library emits and can check. */
export type OcsfClass = keyof typeof CLASSES

/** One violation of the schema: where, and what is wrong there. */
export interface OcsfProblem {
  /** Path from the root of the event, e.g. `finding_info.uid` or `evidences[2].data`. Empty for the event itself. */
  readonly path: string
  readonly message: string
}

interface Attribute {
  readonly name: string
  readonly type: string
  readonly array: boolean
  readonly required: boolean
  readonly sibling: string | undefined
  /** Captions by id, where it is an enumeration. */
  readonly captions: Readonly<Record<number, string>> | undefined
}

interface Shape {
  readonly attributes: ReadonlyMap<string, Attribute>
  readonly required: readonly string[]
}

/** A checked object is at most so deep and has at most so many values: the validator itself faces hostile input. */
const MAX_DEPTH = 32
const MAX_VALUES = 100_000
const MAX_PROBLEMS = 20

const compiled = new Map<string, Shape>()

function shapeOf(owner: string): Shape | undefined {
  const known = compiled.get(owner)
  if (known) return known
  if (!Object.hasOwn(ATTRIBUTES, owner)) return undefined
  const table = new Map<string, Attribute>()
  for (const word of (ATTRIBUTES[owner] as string).trim().split(/\s+/)) {
    const [, name, need, type, array, sibling] = /^(\w+)([!+?])(\w+)(\[\])?(?:=(\w+))?$/.exec(word) ?? []
    if (name === undefined || type === undefined) {
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `OCSF table of ${owner}: malformed entry ${word}`)
    }
    const captions = captionsOf(owner, name)
    table.set(name, { name, type, array: array !== undefined, required: need === '!', sibling, captions })
  }
  const required = [...table.values()].filter((a) => a.required).map((a) => a.name)
  const shape = { attributes: table, required }
  compiled.set(owner, shape)
  return shape
}

class Check {
  readonly problems: OcsfProblem[] = []
  #values = 0

  problem(path: string, message: string): undefined {
    if (this.problems.length < MAX_PROBLEMS) this.problems.push({ path, message })
  }

  object(owner: string, value: unknown, path: string, depth: number): undefined {
    if (!isPlain(value)) return this.problem(path, `must be an object (${owner})`)
    if (depth > MAX_DEPTH) return this.problem(path, `deeper than ${MAX_DEPTH} levels`)
    const shape = shapeOf(owner)
    if (!shape) return this.problem(path, `object type ${owner} is not one this library emits`)
    for (const name of shape.required) {
      if (value[name] === undefined) this.problem(join(path, name), `required by ${owner} and missing`)
    }
    for (const [name, item] of Object.entries(value)) {
      if (item === undefined) continue
      const at = join(path, name)
      const attribute = shape.attributes.get(name)
      if (!attribute) this.problem(at, `${owner} has no attribute ${name}`)
      else this.attribute(owner, attribute, item, value, at, depth)
    }
  }

  attribute(
    owner: string,
    a: Attribute,
    item: unknown,
    parent: Record<string, unknown>,
    at: string,
    depth: number,
  ): undefined {
    if (!a.array) this.value(a, item, at, depth)
    else if (!Array.isArray(item)) this.problem(at, 'must be an array')
    else for (const [index, entry] of item.entries()) this.value(a, entry, `${at}[${index}]`, depth)
    const { captions } = a
    if (!captions || typeof item !== 'number') return
    if (captions[item] === undefined) this.problem(at, `${item} is not in the enumeration of ${owner}.${a.name}`)
    // 99 is Other: its caption is the source's own words.
    else if (a.sibling !== undefined && item !== 99) {
      const caption = parent[a.sibling]
      if (caption !== undefined && caption !== captions[item]) {
        this.problem(at, `${a.sibling} must be ${JSON.stringify(captions[item])} where ${a.name} is ${item}`)
      }
    }
  }

  value(a: Attribute, value: unknown, at: string, depth: number): undefined {
    this.#values++
    if (this.#values > MAX_VALUES) return this.problem('', `more than ${MAX_VALUES} values`)
    if (!Object.hasOwn(SCALARS, a.type)) return this.object(a.type, value, at, depth + 1)
    const scalar = SCALARS[a.type] as (typeof SCALARS)[string]
    switch (scalar.is) {
      case 'string':
        if (typeof value !== 'string') return this.problem(at, `must be a string (${a.type})`)
        if (scalar.maxLength !== undefined && value.length > scalar.maxLength) {
          return this.problem(at, `longer than ${scalar.maxLength} characters`)
        }
        if (scalar.pattern && !scalar.pattern.test(value)) return this.problem(at, `is no ${a.type}`)
        if (a.type === 'ip_t' && isIP(value) === 0) this.problem(at, 'is no IP address')
        return undefined
      case 'boolean':
        if (typeof value !== 'boolean') this.problem(at, 'must be a boolean')
        return undefined
      case 'integer':
      case 'long':
        if (!Number.isSafeInteger(value)) return this.problem(at, `must be an integer (${a.type})`)
        if (scalar.range && ((value as number) < scalar.range[0] || (value as number) > scalar.range[1])) {
          return this.problem(at, `outside ${scalar.range[0]} to ${scalar.range[1]}`)
        }
        // integer_t is 32 bits in OCSF; a pid, a count or an id beyond that does not load in a SIEM.
        if (scalar.is === 'integer' && Math.abs(value as number) > 0x7fff_ffff) this.problem(at, 'beyond 32 bits')
        if (a.type === 'timestamp_t' && (value as number) < 0) this.problem(at, 'must be milliseconds since 1970')
        return undefined
      case 'number':
        if (typeof value !== 'number' || !Number.isFinite(value)) this.problem(at, 'must be a finite number')
        return undefined
      case 'object':
        if (!isPlain(value)) return this.problem(at, 'must be an object')
        return this.json(value, at, depth + 1)
      case 'json':
        return this.json(value, at, depth + 1)
    }
  }

  json(value: unknown, at: string, depth: number): undefined {
    this.#values++
    if (this.#values > MAX_VALUES) return this.problem('', `more than ${MAX_VALUES} values`)
    if (depth > MAX_DEPTH) return this.problem(at, `deeper than ${MAX_DEPTH} levels`)
    if (value === null || typeof value === 'string' || typeof value === 'boolean') return
    if (typeof value === 'number') {
      if (!Number.isFinite(value)) this.problem(at, 'must be a finite number')
    } else if (Array.isArray(value)) {
      for (const [index, item] of value.entries()) this.json(item, `${at}[${index}]`, depth + 1)
    } else if (isPlain(value)) {
      for (const [name, item] of Object.entries(value)) this.json(item, join(at, name), depth + 1)
    } else this.problem(at, 'is not JSON')
  }
}

/**
 * Checks an event strictly against OCSF 1.8.0: unknown attributes, missing required ones, wrong types, values outside an
 * enumeration, captions that contradict their id, a `type_uid` that is not class and activity.
 *
 * Returns every problem found (at most 20), none if the event is valid. Total: no input makes it throw.
 */
export function ocsfProblems(cls: OcsfClass, event: unknown): readonly OcsfProblem[] {
  const check = new Check()
  check.object(cls, event, '', 0)
  if (!isPlain(event)) return check.problems
  const fixed = CLASSES[cls]
  for (const [name, value] of Object.entries(fixed)) {
    const optional = name.endsWith('_name')
    if (event[name] !== value && !(optional && event[name] === undefined)) {
      check.problem(name, `must be ${JSON.stringify(value)}`)
    }
  }
  if (event.type_uid !== fixed.class_uid * 100 + Number(event.activity_id)) {
    check.problem('type_uid', 'must be class_uid * 100 + activity_id')
  }
  const metadata = event.metadata
  if (isPlain(metadata) && metadata.version !== OCSF_VERSION) {
    check.problem('metadata.version', `must be ${OCSF_VERSION}`)
  }
  return check.problems
}

/**
 * Throws ERR_CLOUDAPP_INVALID_ARGUMENT naming the first problem if `event` is not valid OCSF 1.8.0 of class `cls`;
 * `details.problems` has all that were found.
 */
export function assertOcsf(cls: OcsfClass, event: unknown): void {
  const problems = ocsfProblems(cls, event)
  const first = problems[0]
  if (!first) return
  throw new CloudAppError(
    'ERR_CLOUDAPP_INVALID_ARGUMENT',
    `No valid OCSF ${cls}: ${first.path || '.'} ${first.message}`,
    {
      details: { problems: problems.map((p) => `${p.path || '.'}: ${p.message}`) },
    },
  )
}

/** The caption of an enumeration's id, e.g. `caption('detection_finding', 'severity_id', 4)` is `High`. */
export function caption(owner: string, attribute: string, id: number): string {
  const text = captionsOf(owner, attribute)?.[id]
  if (text === undefined) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `OCSF ${owner}.${attribute} has no value ${id}`)
  }
  return text
}

function captionsOf(owner: string, name: string): Readonly<Record<number, string>> | undefined {
  const own = `${owner}.${name}`
  if (Object.hasOwn(ENUMS, own)) return ENUMS[own]
  return Object.hasOwn(ENUMS, name) ? ENUMS[name] : undefined
}

function join(path: string, name: string): string {
  const shown = name.length > 64 ? `${name.slice(0, 64)}…` : name
  return path === '' ? shown : `${path}.${shown}`
}

function isPlain(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === Object.prototype || prototype === null
}
