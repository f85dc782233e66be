import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { KeyPair } from '../../src/capabilities/keys.js'
import { makePass, type PassText, verifyPass } from '../../src/capabilities/pass.js'
import { CloudAppError } from '../../src/errors.js'

const customer = KeyPair.generate()
const service = KeyPair.generate().publicKey
const channel = new Uint8Array(32).fill(7)

const code = (text: string, options: Partial<Parameters<typeof verifyPass>[1]> = {}): string => {
  try {
    verifyPass(text, { service, channel, ...options })
  } catch (error) {
    if (CloudAppError.is(error)) return error.code
    throw error
  }
  return 'taken'
}

describe('a pass', () => {
  it('tells whose it is, at the service domain it is for, until it expires', () => {
    const pass = makePass(customer, { service, expires: '10m' })
    expect(verifyPass(pass, { service })).toMatchObject({ customer: customer.publicKey, bound: false })
    expect(code(pass, { service: KeyPair.generate().publicKey })).toBe('ERR_CLOUDAPP_PROOF')
    expect(code(pass, { now: Date.now() + 600_001 })).toBe('ERR_CLOUDAPP_EXPIRED')
    expect(code(pass, { now: Date.now() - 400 * 86_400_000 })).toBe('ERR_CLOUDAPP_PROOF')
    for (const expires of [Date.now() - 1, '367d']) {
      expect(() => makePass(customer, { service, expires })).toThrow(
        expect.objectContaining({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' }),
      )
    }
  })

  it('made for a channel is good on no other', () => {
    const pass = makePass(customer, { service, expires: '1m', channel })
    expect(verifyPass(pass, { service, channel }).bound).toBe(true)
    expect(code(pass, { channel: new Uint8Array(32).fill(8) })).toBe('ERR_CLOUDAPP_PROOF')
    expect(() => verifyPass(pass, { service })).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_PROOF' }))
  })

  it('with any bit changed, or anything else, is refused and nothing worse', () => {
    const pass = makePass(customer, { service, expires: '10m' })
    const bytes = Buffer.from(pass.slice('cloudapp-pass1.'.length), 'base64url')
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const changed = Buffer.from(bytes)
      changed[bit >> 3] = (changed[bit >> 3] as number) ^ (1 << (bit & 7))
      expect(code(`cloudapp-pass1.${changed.toString('base64url')}` as PassText), `bit ${bit}`).toBe(
        'ERR_CLOUDAPP_PROOF',
      )
    }
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.uint8Array({ maxLength: 300 })), (text) => {
        const given = typeof text === 'string' ? text : `cloudapp-pass1.${Buffer.from(text).toString('base64url')}`
        expect(code(given)).toBe('ERR_CLOUDAPP_PROOF')
      }),
    )
  })
})
