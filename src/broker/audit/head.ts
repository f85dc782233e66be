import { isPublicKey, type KeyPair, verifySignature } from '../../capabilities/keys.js'
import { CloudAppError } from '../../errors.js'
import type { AuditHead } from './types.js'

const CONTEXT = Buffer.from('cloudapp audit head v1\0')

function headBytes(head: Pick<AuditHead, 'log' | 'seq' | 'hash' | 'time'>): Buffer {
  const numbers = Buffer.alloc(16)
  numbers.writeBigUInt64BE(BigInt(head.seq), 0)
  numbers.writeBigUInt64BE(BigInt(head.time), 8)
  return Buffer.concat([CONTEXT, Buffer.from(head.log, 'hex'), numbers, Buffer.from(head.hash, 'hex')])
}

export function signHead(key: KeyPair, at: Pick<AuditHead, 'log' | 'seq' | 'hash' | 'time'>): AuditHead {
  const signature = Buffer.from(key.sign(headBytes(at))).toString('base64url')
  return { ...at, broker: key.publicKey, signature }
}

/** True if the head is signed by the key it names. The caller compares that key with the one it knows. */
export function isSigned(head: AuditHead): boolean {
  return verifySignature(head.broker, headBytes(head), Buffer.from(head.signature, 'base64url'))
}

/** A head as one line of JSON, for the customer to keep. */
export function headToText(head: AuditHead): string {
  const { log, seq, hash, time, broker, signature } = head
  return JSON.stringify({ log, seq, hash, time, broker, signature })
}

/** Reads what {@link headToText} wrote. Its signature is not checked here. @throws CloudAppError `ERR_CLOUDAPP_AUDIT` */
export function parseHead(text: string): AuditHead {
  let value: unknown
  try {
    value = text.length <= 2048 ? JSON.parse(text) : undefined
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_AUDIT', 'not a signed head: no JSON', { cause })
  }
  if (!isHead(value)) throw new CloudAppError('ERR_CLOUDAPP_AUDIT', 'not a signed head of an audit log')
  return value
}

export function isHead(value: unknown): value is AuditHead {
  if (typeof value !== 'object' || value === null || Object.keys(value).length !== 6) return false
  const { log, seq, hash, time, broker, signature } = value as Record<string, unknown>
  return (
    matches(log, /^[0-9a-f]{32}$/) &&
    isCount(seq) &&
    matches(hash, /^[0-9a-f]{64}$/) &&
    isCount(time) &&
    isPublicKey(broker) &&
    matches(signature, /^[A-Za-z0-9_-]{86}$/)
  )
}

function matches(value: unknown, form: RegExp): boolean {
  return typeof value === 'string' && form.test(value)
}

function isCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0
}
