import { CloudAppError } from '../errors.js'
import { nearest } from '../options.js'

/**
 * The closed vocabulary of rights. `code` is the word on the wire (docs/token-format.md) and never changes meaning;
 * `allows` is what a customer reads before they consent, `risk` what a malicious holder could do with it.
 */
export const RIGHTS = {
  'vm.info': {
    code: 1,
    allows: "see the VM's size, state and number of virtual CPUs",
    risk: 'learns when the VM runs',
  },
  'vm.pause': {
    code: 2,
    allows: 'stop the VM for short moments and let it go on',
    risk: 'can slow the VM down, up to the pause budget',
  },
  'vm.clone': {
    code: 3,
    allows: 'have a contained copy of the running VM made for a check, and discarded after it',
    risk: 'the copy holds everything the VM holds',
  },
  'memory.read': {
    code: 4,
    allows: "read the VM's memory",
    risk: 'sees passwords, keys and data that are in memory',
  },
  'memory.write': {
    code: 5,
    allows: "change the VM's memory",
    risk: 'can take over the VM',
  },
  'vcpu.read': {
    code: 6,
    allows: "read the registers of the VM's virtual CPUs",
    risk: 'sees what the VM is working on at that moment',
  },
  'vcpu.write': {
    code: 7,
    allows: "change the registers of the VM's virtual CPUs",
    risk: 'can take over the VM',
  },
  'events.syscall': {
    code: 8,
    allows: 'be told which system calls the programs in the VM make',
    risk: 'sees file names and other arguments of programs, and slows them down',
  },
  'events.register': {
    code: 9,
    allows: 'be told when control registers of the VM change, for example when it switches between processes',
    risk: 'slows the VM down',
  },
  'events.memory': {
    code: 10,
    allows: 'be told when chosen memory of the VM is read, written or executed',
    risk: 'slows the VM down',
  },
  'network.observe': {
    code: 11,
    allows: 'see which process in the VM talks to which address',
    risk: 'learns who the VM talks to',
  },
  'network.filter': {
    code: 12,
    allows: "see and block the VM's network packets",
    risk: 'sees unencrypted traffic and can cut the VM off',
  },
  'disk.observe': {
    code: 13,
    allows: 'see what the VM reads from and writes to its disks',
    risk: 'sees everything on the disks',
  },
  'disk.transform': {
    code: 14,
    allows: 'change what the VM reads from and writes to its disks, for example encrypt it',
    risk: 'can change or lose everything on the disks',
  },
} as const satisfies Record<string, { code: number; allows: string; risk: string }>

/** A word of the vocabulary: what a capability can allow. */
export type Right = keyof typeof RIGHTS

/** Every right, in the order of their codes. */
export const ALL_RIGHTS: readonly Right[] = Object.freeze(Object.keys(RIGHTS) as Right[])

const byCode = new Map<number, Right>(ALL_RIGHTS.map((right) => [RIGHTS[right].code, right]))

/** True if `value` is a word of the vocabulary. */
export function isRight(value: unknown): value is Right {
  return typeof value === 'string' && Object.hasOwn(RIGHTS, value)
}

/** The right with this wire code, if there is one. */
export function rightOfCode(code: number): Right | undefined {
  return byCode.get(code)
}

/** @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT`, naming the nearest right. */
export function parseRight(value: string): Right {
  if (isRight(value)) return value
  const guess = typeof value === 'string' ? nearest(value, ALL_RIGHTS) : undefined
  const hint = guess === undefined ? `there are ${ALL_RIGHTS.join(', ')}` : `did you mean '${guess}'?`
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `no right '${String(value).slice(0, 64)}'; ${hint}`)
}

/**
 * Rights from a list of words, or from one text with commas or blanks between them: each once, in the order of codes.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` for an unknown word or none at all.
 */
export function parseRights(words: string | readonly string[]): Right[] {
  const list = typeof words === 'string' ? words.split(/[\s,]+/).filter((word) => word !== '') : words
  const held = new Set(list.map(parseRight))
  if (held.size === 0) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'at least one right must be named')
  return ALL_RIGHTS.filter((right) => held.has(right))
}

/**
 * The error for an operation whose right is not held: `right` is what was missing, `details.held` what is held.
 */
export function deniedError(right: Right, held: readonly Right[], vm: string): CloudAppError {
  const has = held.length === 0 ? 'none is held' : `held: ${held.join(', ')}`
  return new CloudAppError('ERR_CLOUDAPP_DENIED', `the right ${right} on ${vm} is not held (${has})`, {
    right,
    vm,
    details: { held: [...held] },
  })
}
