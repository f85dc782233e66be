import type { Grant, Narrowing } from './caveats.js'
import { grantOf } from './grant.js'
import { keyId, type PublicKey } from './keys.js'
import type { AddressRange } from './ranges.js'
import { RIGHTS } from './rights.js'
import type { ProcessScope } from './scope.js'
import { beyondSyscalls } from './syscall-limit.js'
import { isoTime } from './time.js'
import { parseToken, tokenHash } from './token.js'

/** What a token says. Nothing in it is proven: only the broker it is for can verify it. */
export interface TokenDescription {
  /** SHA-256 of the token, hexadecimal. */
  readonly hash: string
  readonly bytes: number
  /** Who claims to own the VM. */
  readonly issuer: PublicKey
  readonly holder: PublicKey
  readonly grant: Grant
  readonly blocks: readonly { readonly id: string; readonly holder: PublicKey; readonly narrowing: Narrowing }[]
  /** The grant in plain words, a sentence each. */
  readonly words: readonly string[]
}

/**
 * Reads a token without verifying it, for people to look at.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_TOKEN` if it is malformed or a block widens.
 */
export function inspectToken(token: Uint8Array): TokenDescription {
  const { blocks } = parseToken(token)
  const grant = grantOf(blocks)
  const root = blocks[0] as (typeof blocks)[number]
  const last = blocks[blocks.length - 1] as typeof root
  return {
    hash: Buffer.from(tokenHash(token)).toString('hex'),
    bytes: token.length,
    issuer: root.issuer as PublicKey,
    holder: last.holder,
    grant,
    blocks: blocks.map(({ id, holder, narrowing }) => ({ id, holder, narrowing })),
    words: describeGrant(grant),
  }
}

/** A grant in plain words, for a person who shall consent to it. */
export function describeGrant(grant: Grant): string[] {
  const words = grant.rights.map((right) => `It may ${RIGHTS[right].allows}. Risk: ${RIGHTS[right].risk}.`)
  if (words.length === 0) words.push('It may do nothing.')
  words.push(`Only on the VM ${grant.vm.uuid}, until it is started anew.`)
  words.push(`From ${isoTime(grant.notBefore)} until ${isoTime(grant.expires)}.`)
  words.push(`Only through the broker ${keyId(grant.audience)}${onTransports(grant)}.`)
  return [...words, ...describeLimits(grant)]
}

function onTransports({ transports }: Grant): string {
  if (transports === undefined) return ''
  return transports.length === 0 ? ', over no transport' : `, over ${transports.join(' or ')}`
}

function describeLimits(grant: Grant): string[] {
  const words: string[] = []
  const limit = (value: number | undefined, text: (value: number) => string) => {
    if (value !== undefined) words.push(text(value))
  }
  limit(grant.uses, (n) => `At most ${n} operations in all.`)
  limit(grant.operationsPerSecond, (n) => `At most ${n} operations a second.`)
  limit(grant.outputBytes, (n) => `At most ${n} bytes given out in all.`)
  limit(grant.bytesPerSecond, (n) => `At most ${n} bytes a second.`)
  limit(grant.pauseMsPerMinute, (n) => `The VM is paused for at most ${n} ms in a minute.`)
  const { memory, processes, syscalls } = grant
  if (memory !== undefined) {
    const parts = [
      ...describeRanges('physical memory', memory.physical),
      ...describeRanges("the kernel's memory", memory.kernel),
      ...describeRanges("the processes' memory", memory.process),
    ]
    words.push(parts.length === 0 ? 'No memory at all.' : `Of memory only: ${parts.join('; ')}.`)
  }
  if (processes !== undefined) words.push(`Only the processes: ${processes.map(describeProcess).join('; ') || 'none'}.`)
  if (syscalls !== undefined) words.push(...describeSyscalls(syscalls, grant))
  return words
}

function describeSyscalls(syscalls: readonly number[], grant: Grant): string[] {
  const refused = grant.rights.filter((right) => beyondSyscalls(grant, right))
  const words = [`Of system calls it is told only of: ${syscalls.join(', ') || 'none'}.`]
  if (refused.length > 0) words.push(`The broker can not hold these to that, and refuses them: ${refused.join(', ')}.`)
  if (grant.rights.some((right) => right === 'memory.read' || right === 'vcpu.read')) {
    words.push('What it may read of memory or registers shows any system call under way.')
  }
  return words
}

function describeRanges(what: string, ranges: readonly AddressRange[] | undefined): string[] {
  if (ranges === undefined || ranges.length === 0) return []
  return [`${what} ${ranges.map(({ first, last }) => `0x${first.toString(16)}–0x${last.toString(16)}`).join(', ')}`]
}

function describeProcess({ name, cgroup }: ProcessScope): string {
  if (cgroup === undefined) return `named ${name}`
  return name === undefined ? `in ${cgroup}` : `named ${name} in ${cgroup}`
}
